"""`onhand up`: start everything and stay in the foreground."""

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from adapters.cli.options import (
    DEFAULT_DATA_DIR,
    DataDir,
    RayAddress,
    RedisUrl,
    Shards,
    remove_note,
    write_note,
)
from adapters.cli.output import err, say
from adapters.cli.stack import stack_of

if TYPE_CHECKING:
    from adapters.registry import Entry
    from adapters.stack import Stack


def up(
    shards: Shards = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            envvar="ONHAND_PORT",
            min=0,
            max=65_535,
            show_default="7411",
            help="Of the gateway; 0: any free one.",
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    redis_url: RedisUrl = "",
    ray_address: RayAddress = "",
) -> None:
    """Start Onhand here and keep it running until Ctrl-C.

    Starts an embedded Valkey and a local Ray unless it is given others, one actor for each shard,
    and a gateway. All data is in --data-dir (or in the Redis named): start again, and it goes on.
    What is not said here is taken from the environment (ONHAND_SHARDS and so on), and then from the
    TOML file that ONHAND_CONFIG names.

    Example: onhand up --shards 2 --port 7411 --data-dir /var/lib/onhand
    """
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    with stack_of(data_dir, shards, redis_url, ray_address, port) as stack:
        for warning in stack.warnings:
            say(f"warning: {warning}")
        servers = stack.servers()
        write_note(data_dir, {"gateway": stack.gateway_address, "ray": stack.cluster.address})
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            err.print(_addresses(stack, servers))
            err.print(f"logs of the actors: {stack.cluster.log_dir}", soft_wrap=True)
            say("ready; Ctrl-C stops it")
            stopping.wait()
            say("stopping ...")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            remove_note(data_dir)
    say("stopped")


def _addresses(stack: "Stack", servers: "dict[str, Entry]") -> Table:
    table = Table("", "gRPC", "metrics")
    for name, entry in sorted(servers.items()):
        table.add_row(name, entry.address, entry.metrics)
    table.add_section()
    table.add_row("journal", stack.settings.redis_url_shown, "")
    table.add_row("Ray", stack.cluster.address, "")
    return table

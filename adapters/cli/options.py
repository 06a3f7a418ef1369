"""Options that several commands share, and how a running Onhand is found."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from adapters.cli.output import CommandFailed
from engine import limits

DEFAULT_DATA_DIR: Final = Path(".onhand")
CONFIG_VARIABLE: Final = "ONHAND_CONFIG"  # a TOML file with settings: see `adapters.settings`
TIMEOUT_S: Final = 5.0  # a person waits
NOTE: Final = "running.json"  # in the data directory, while `onhand up` runs


def _configured(context: typer.Context, value: Path) -> Path:
    """The data directory of the file in ONHAND_CONFIG, unless one was named. CommandFailed."""
    source = context.get_parameter_source("data_dir")
    if CONFIG_VARIABLE not in os.environ or source is None or source.name != "DEFAULT":
        return value
    from adapters.settings import Settings, SettingsInvalid

    try:
        return Settings.load().data_dir
    except SettingsInvalid as error:
        raise CommandFailed(str(error)) from error


DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="ONHAND_DATA_DIR",
        file_okay=False,
        callback=_configured,
        help="Where `onhand up` keeps the embedded Valkey's data, and says that it runs.",
    ),
]
Gateway = Annotated[
    str,
    typer.Option(
        "--gateway",
        envvar="ONHAND_GATEWAY",
        metavar="HOST:PORT",
        help="The gateway to call; without it, that of `onhand up` in --data-dir.",
    ),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the report to FILE as JSON.")
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        envvar="ONHAND_SHARDS",
        min=1,
        max=limits.MAX_SHARDS,
        show_default="1",
        help="Shard actors; fixed once there is data.",
    ),
]
RedisUrl = Annotated[
    str,
    typer.Option(
        "--redis-url",
        envvar="ONHAND_REDIS_URL",
        metavar="URL",
        help="A Valkey or Redis that keeps the journal, instead of the embedded one.",
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        "--ray-address",
        envvar="ONHAND_RAY_ADDRESS",
        metavar="HOST:PORT",
        help="A Ray cluster to run on ('auto' finds one here), instead of a local Ray.",
    ),
]


def write_note(data_dir: Path, running: dict[str, Any]) -> None:
    """Tell the other commands where Onhand runs."""
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / NOTE).write_text(json.dumps({"pid": os.getpid()} | running, indent=2) + "\n")


def remove_note(data_dir: Path) -> None:
    """Say that it runs no more."""
    (data_dir / NOTE).unlink(missing_ok=True)


def read_note(data_dir: Path) -> dict[str, Any]:
    """What `onhand up` wrote there; empty when it does not run."""
    try:
        note = json.loads((data_dir / NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def gateway_of(gateway: str, data_dir: Path) -> str:
    """The gateway that is meant. CommandFailed when none is known."""
    found = gateway or str(read_note(data_dir).get("gateway", ""))
    if not found:
        raise CommandFailed(
            f"no Onhand runs on {data_dir}: start one with `onhand up`, or name it by --gateway"
        )
    host, _, port = found.rpartition(":")
    if not (host and port.isdigit()):
        raise typer.BadParameter(f"{found!r} is not HOST:PORT", param_hint="--gateway")
    return found

"""`onhand`: the entry point, what all commands have in common, and the list of them."""

import os
import signal
import sys
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any, Final

import typer

from adapters.cli import inspect, load, look, rename, replay, up
from adapters.cli.output import CommandFailed, err

HELP: Final = """\
Real-time inventory and pricing engine for retailers.

[bold]See it work[/bold] on a year of a real chain's sales, with an audit at the end:

    onhand demo

[bold]Run it[/bold] here, then, in another terminal, look into it:

    onhand up
    onhand load skus.csv && onhand load locations.csv && onhand load stock.csv
    onhand get 826249 S0367
    onhand history 0198c5b2f3a97c0e8d41b7a6e5f40312
    onhand watch S0367

[bold]Run it[/bold] on a Ray cluster, with the journal in a Redis or Valkey of yours:

    onhand up --ray-address 10.0.0.1:6379 --redis-url redis://10.0.0.2:6379/0 --shards 8

Exit codes: 0 done, 1 failed (or an audit that does not hold), 2 wrong usage.
ONHAND_DEBUG=1 shows tracebacks."""

app = typer.Typer(
    name="onhand",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(up.up)
app.command()(replay.demo)
app.command("replay")(replay.replay_year)
app.command()(inspect.status)
app.command()(inspect.audit)
app.command()(inspect.snapshot)
app.command("load")(load.load_file)
app.command()(rename.rename)
app.command()(look.get)
app.command()(look.history)
app.command()(look.watch)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"onhand {version('onhand')}")
        raise typer.Exit


@app.callback()
def _common(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Tell the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every failure is one line on stderr."""
    signal.signal(signal.SIGTERM, _end)
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("ONHAND_DEBUG"):
            raise
        is_usage = hasattr(error, "format_message")  # typer's own errors, whatever they derive from
        told = _usage_told(error) if is_usage else _told(error)
        if told:
            err.print(f"onhand: {told}", markup=False, style="red", soft_wrap=True)
        sys.exit(getattr(error, "exit_code", 2) if is_usage else 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(number: int, _frame: FrameType | None) -> None:
    """End in good order, also half-way through a start: what was started is not left behind."""
    sys.exit(128 + number)


def _usage_told(error: Any) -> str:
    """What is wrong with the command line, and where help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else _asked()
    text = str(error.format_message()).rstrip(".")
    return f"{text} (see {path} --help)" if text else ""  # help was shown


def _asked() -> str:
    """The command that was asked for: an option without its value is told of none."""
    named = next(iter(sys.argv[1:]), "")
    is_command = named in getattr(typer.main.get_command(app), "commands", ())
    return f"onhand {named}" if is_command else "onhand"


def _told(error: Exception) -> str:
    """An error in one line; the type's name only where the message may not do without it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CommandFailed):
        return str(error)  # may have several lines, each complete in itself
    text = " ".join(str(error).split())
    room = type(error).__module__.partition(".")[0]
    return text if text and room in {"actors", "adapters"} else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()

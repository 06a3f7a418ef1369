"""How the commands speak: results on stdout, everything else on stderr, one line an error."""

import json
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class CommandFailed(Exception):  # noqa: N818 - its text is the line that the user reads
    """A command could not do its work; `main` prints the text, and exits with 1."""


def usage(message: str) -> NoReturn:
    """Refuse an option or argument, with exit code 2."""
    raise typer.BadParameter(message)


def say(message: str) -> None:
    """Tell how things go."""
    err.print(message)


def print_json(value: Any) -> None:
    """Print a value for machines on stdout."""
    typer.echo(json.dumps(value, indent=2))


def check_writable(path: Path | None) -> None:
    """Refuse a result file that cannot be written, before the work and not after it."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise CommandFailed(f"--json {path}: not a file in a folder that exists")


def write_json(path: Path | None, value: Any) -> None:
    """Write a value to a file, if one was asked for."""
    if path is not None:
        path.write_text(json.dumps(value, indent=2) + "\n")
        say(f"written: {path}")


def progress_bar() -> Progress:
    """A bar for work of a known size, on stderr; plain lines are left when it is no terminal."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
    )

"""What slows down an actor whose process dies again and again; see `brake_s`."""

from contextlib import suppress
from pathlib import Path
from typing import Final

QUICK_DEATH_S: Final = 3.0  # a process that was replaced sooner did not live; the second in a row
BRAKE_MIN_S: Final = 0.5  # makes the third wait, doubling
BRAKE_MAX_S: Final = 10.0
NOTE_PREFIX: Final = "onhand-restarts-"  # of the files in which starts are noted


def brake_s(note: Path, now_s: float) -> float:
    """Seconds that a restarted actor should wait before it starts; notes this start in a file.

    A process that dies right after its start is replaced by Ray at once, for ever. Ray has no
    setting to slow that down, and nothing but a file outlives the process.
    """
    try:
        deaths, began_s = note.read_text().split()
        quick_deaths = int(deaths) + 1 if now_s - float(began_s) < QUICK_DEATH_S else 0
    except (OSError, ValueError):
        quick_deaths = 0
    wait_s = min(BRAKE_MAX_S, BRAKE_MIN_S * 2 ** (quick_deaths - 2)) if quick_deaths > 1 else 0.0
    with suppress(OSError):  # without the note the brake is off, which is no reason not to serve
        note.write_text(f"{quick_deaths} {now_s + wait_s}")
    return wait_s


def forget_old_notes(folder: Path, now_s: float) -> None:
    """Remove the notes of actors that were not stopped in good order and have not started since."""
    for note in folder.glob(f"{NOTE_PREFIX}*"):
        with suppress(OSError):  # another actor was quicker, or it is another user's
            if now_s - note.stat().st_mtime > QUICK_DEATH_S + BRAKE_MAX_S:
                note.unlink()

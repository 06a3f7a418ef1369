"""Actors that die at every start are slowed down, and their notes do not stay for ever."""

import os
import time
from pathlib import Path

from actors.brake import QUICK_DEATH_S, brake_s, forget_old_notes


def test_the_brake_lets_two_deaths_pass_and_forgets(tmp_path: Path) -> None:
    note = tmp_path / "note"
    now_s, waits_s = 1_000.0, []
    for _ in range(9):
        waits_s.append(brake_s(note, now_s))
        now_s += waits_s[-1] + 1.0
    assert waits_s == [0, 0, 0.5, 1, 2, 4, 8, 10, 10]
    assert brake_s(note, now_s + QUICK_DEATH_S) == 0
    note.write_text("rubbish")
    assert brake_s(note, now_s) == 0


def test_notes_of_actors_that_are_gone_are_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("onhand-restarts-1", "onhand-restarts-2", "a"))
    for note in (old, new, other):
        brake_s(note, 1_000.0)
    now_s = time.time()
    for note in (old, other):
        os.utime(note, (now_s - 60, now_s - 60))
    forget_old_notes(tmp_path, now_s)
    assert [note.exists() for note in (old, new, other)] == [False, True, True]

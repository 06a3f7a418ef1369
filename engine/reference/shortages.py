"""The holds that facts endanger when they leave less than nothing available."""

from collections.abc import Iterable
from typing import Final

from engine import limits
from engine.operations import Disposition, Kind
from engine.reference.book import Book, key_of
from engine.reference.lines import Key, Line
from engine.status import Status
from engine.views import Endangered, EndangeredHold

# The facts that may leave less available than before. A return does when its goods are set aside and
# a later count has seen them already.
_LOWERING: Final = (
    Kind.SALE, Kind.ADJUST, Kind.COUNT, Kind.SET_SAFETY_STOCK, Kind.WRITE_OFF,
)  # fmt: skip


def name_endangered(
    book: Book, lines: Iterable[Line], statuses: Iterable[int]
) -> Iterable[Endangered]:
    """What the facts of a block endanger, now that all its lines are applied."""
    left = limits.MAX_ENDANGERED_OF_BLOCK
    named: dict[Key, tuple[EndangeredHold, ...]] = {}
    for index, (line, status) in enumerate(zip(lines, statuses, strict=True)):
        if status != Status.OK or not _may_lower(line):
            continue
        units = -book.cells[line.key].available
        if units > 0:
            if line.key not in named:
                named[line.key] = _endangered_on(book, line.key, units)[:left]
                left -= len(named[line.key])
            yield Endangered(index, *line.key, units, named[line.key])


def _endangered_on(book: Book, key: Key, units: int) -> tuple[EndangeredHold, ...]:
    """The lines of live holds on a cell that a shortage of `units` endangers."""
    found = [
        EndangeredHold(hold_id, line.pending, line.committed)
        for hold_id, hold in reversed(book.holds.items())
        for line in hold.lines
        if key_of(line) == key and line.pending + line.committed
    ]
    found.sort(key=lambda each: each.pending == 0)  # keeps the newest first
    chosen = []
    for each in found[: limits.MAX_ENDANGERED]:
        if units > 0:
            chosen.append(each)
            units -= each.pending + each.committed
    return tuple(chosen)


def _may_lower(line: Line) -> bool:
    """Whether a fact may leave less available than before."""
    sets_aside = line.kind == Kind.RETURN and line.value != Disposition.RESTOCK
    return line.kind in _LOWERING or sets_aside

"""The holds that facts endanger when they leave less than nothing available."""

from collections.abc import Iterable, Iterator
from itertools import islice
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
    return islice(_all_endangered(book, lines, statuses), limits.MAX_SHORTAGES_OF_BLOCK)


def _all_endangered(
    book: Book, lines: Iterable[Line], statuses: Iterable[int]
) -> Iterator[Endangered]:
    left = limits.MAX_ENDANGERED_OF_BLOCK
    named: dict[Key, tuple[EndangeredHold, ...]] = {}
    for index, (line, status) in enumerate(zip(lines, statuses, strict=True)):
        for key in _lowered(book, index, line) if status == Status.OK else ():
            units = -book.cells[key].available
            if units > 0:
                if key not in named:
                    named[key] = _endangered_on(book, key, units)[:left]
                    left -= len(named[key])
                yield Endangered(index, *key, units, named[key])


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


def _lowered(book: Book, index: int, line: Line) -> list[Key]:
    """The cells of which a fact may leave less available than before, by SKU and location.

    A handover that failed does where the newest count has seen the goods: they are promised again,
    and no more is there than was counted.
    """
    if line.kind == Kind.UNFULFIL:
        moment_ns = book.moment_ns(line.occurred_at_ns)
        keys = {each.key for each in book.traces if each.line == index and each.units > 0}
        return sorted(key for key in keys if book.is_seen(key, moment_ns))
    sets_aside = line.kind == Kind.RETURN and line.value != Disposition.RESTOCK
    return [line.key] if line.kind in _LOWERING or sets_aside else []

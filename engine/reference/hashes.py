"""The state hash: the same number whenever the cells, their counts and the live holds are the same.

It is the sum of a hash of each of them, modulo 2**64, with the constants of `engine.kernels`.
"""

from collections.abc import Iterable
from typing import Final

from engine.operations import id_to_pair
from engine.reference.book import Book, key_of
from engine.reference.lines import Key
from engine.reference.places import WORD, mix
from engine.views import Cell, Hold, HoldLine, HoldState, Incoming

# Odd constants from the digits of pi.
_MULTIPLIERS: Final = (
    0x243F6A8885A308D3,
    0x13198A2E03707345,
    0xA4093822299F31D1,
    0x082EFA98EC4E6C89,
    0x452821E638D01377,
    0xBE5466CF34E90C6D,
    0xC0AC29B7C97C50DD,
    0x3F84D5B5B5470917,
    0x9216D5D98979FB1B,
    0xD1310BA698DFB5AD,
)


def state_hash(book: Book) -> int:
    """64 bits over all cells, the moments of their counts, live holds and incoming records."""
    rows = {key: row for row, key in enumerate(book.cells)}
    total = sum(_cell_hash(key, cell) for key, cell in book.cells.items())
    for hold_id, hold in book.holds.items():
        if hold.state.is_live:
            total += sum(_line_hashes(hold_id, hold, rows))
    total += sum(_count_hash(key, moment) for key, moment in book.counted_at_ns.items())
    for incoming_id, record in book.incoming.items():
        if record.state.is_live:
            total += sum(_line_hashes(incoming_id, _as_hold(record), rows))
    return total & WORD


def _weighted(words: Iterable[int]) -> int:
    """Negative words count as their two's complement."""
    return sum(word * by for word, by in zip(words, _MULTIPLIERS, strict=False)) & WORD


def _cell_hash(key: Key, cell: Cell) -> int:
    sku, location = key
    stock = (cell.on_hand, cell.reserved, cell.committed, cell.damaged, cell.quality_control)
    rest = (cell.safety_stock, cell.incoming, cell.price_minor, cell.price_version)
    return mix(_weighted((location << 32 | sku, *stock, *rest)))


def _count_hash(key: Key, moment_ns: int) -> int:
    sku, location = key
    return mix(_weighted((location << 32 | sku, moment_ns)) ^ _MULTIPLIERS[8])


def _as_hold(record: Incoming) -> Hold:
    """The columns of holds that a record is kept in."""
    lines = [
        HoldLine(each.sku, each.location, each.outstanding, each.expected, each.received)
        for each in record.lines
    ]
    return Hold(record.state, record.expected_at_ns, lines)


def _line_hashes(hold_id: bytes, hold: Hold, rows: dict[Key, int]) -> Iterable[int]:
    for number, line in enumerate(hold.lines):
        # The hold's state stands in its first line only; each line of a record says what it is.
        is_hold = number > 0 and hold.state != HoldState.INCOMING
        state = HoldState.PENDING if is_hold else hold.state
        units = (line.pending, line.committed, line.fulfilled, line.returned)
        stands = state | number << 8
        words = (*id_to_pair(hold_id), rows[key_of(line)], hold.deadline_ns, *units, stands)
        yield mix(_weighted(words) ^ _MULTIPLIERS[9])

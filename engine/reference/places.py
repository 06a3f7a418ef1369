"""Which cells this shard may touch: locations, SKUs, the shard map, channels. It knows no stock."""

from typing import Final

from engine.block import NOT_SOLD, Place
from engine.reference.book import Book
from engine.reference.lines import Line
from engine.status import Status

WORD: Final = (1 << 64) - 1


def check_place(book: Book, line: Line) -> Status:
    """Whether catalogue and shard map know the cell that a line names, and give it to this shard."""
    place = book.places.get(line.location)
    if place is None:
        return Status.UNKNOWN_LOCATION
    if not 1 <= line.sku <= book.sku_limit:
        return Status.UNKNOWN_SKU
    return Status.WRONG_SHARD if is_elsewhere(place, line.sku) else Status.OK


def check_channel(book: Book, line: Line) -> Status:
    """Whether the channel of a line sells from its location, which is known."""
    buffers = book.places[line.location].buffers
    if line.channel >= max(1, len(buffers)):
        return Status.UNKNOWN_CHANNEL
    if line.channel and buffers[line.channel] == NOT_SOLD:
        return Status.NOT_IN_CHANNEL
    return Status.OK


def kept_from(book: Book, channel: int, location: int) -> int:
    """How much of each cell of a location is kept from a channel that sells there."""
    return book.places[location].buffers[channel] if channel else 0


def check_destination(book: Book, line: Line) -> Status:
    """Where a MOVE goes: `check_place`, but SKU 0 is every one."""
    if line.sku:
        return check_place(book, line)
    place = book.places.get(line.location)
    if place is None:
        return Status.UNKNOWN_LOCATION
    return Status.OK if place.owned else Status.WRONG_SHARD


def is_elsewhere(place: Place, sku: int) -> bool:
    """Whether a cell of a location belongs to another shard."""
    is_in_part = place.split <= 1 or (mix(sku) >> 33) % place.split == place.part
    return not place.owned or not is_in_part


def mix(x: int) -> int:
    """The finalizer of splitmix64: a bijection of 64 bits."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)

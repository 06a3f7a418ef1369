"""A copy of one shard's cells, kept by the after-images of its blocks.

A gateway answers reads from it and tells subscribers what has changed, so each row remembers the
newest block that touched its stock and the newest that touched its price. Rows are numbered as in
the shard: never deleted, never re-numbered. This room knows no subscribers and no journal.
"""

from collections.abc import Iterable
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.block import AfterImage, Block
from engine.frames import Fields
from engine.kernels import (
    CELL_WORDS,
    COMMITTED,
    KEY,
    ON_HAND,
    PRICE,
    RESERVED,
    SAFETY_STOCK,
    VERSION,
)
from engine.views import Endangered

SEQ_BITS: Final = 40  # of a stamp; the epoch has the bits above
MAX_SEQ: Final = (1 << SEQ_BITS) - 1
MAX_EPOCH: Final = (1 << (63 - SEQ_BITS)) - 1

_FIRST_ROWS: Final = 1024
_NO_ROWS: Final = np.zeros(0, np.int32)
_STOCK, _PRICE = 0, 1  # columns of the stamps
_T = TypeVar("_T", bound=np.generic)


class MirrorBroken(ValueError):  # noqa: N818 - a condition of the mirror
    """What the mirror holds and the block do not lead to what follows; nothing was changed.

    Load it anew.
    """


def stamp_of(epoch: int, seq: int) -> int:
    """A place in a journal as one number that grows with it.

    ValueError when either does not fit.
    """
    if not (0 <= epoch <= MAX_EPOCH and 0 <= seq <= MAX_SEQ):
        raise ValueError(f"{epoch}-{seq} is not a place in a journal")
    return epoch << SEQ_BITS | seq


def place_of(stamp: int) -> tuple[int, int]:
    """The (epoch, seq) of a stamp."""
    return stamp >> SEQ_BITS, stamp & MAX_SEQ


def key_of(sku: int, location: int) -> int:
    """The key of a cell, as in its row's word KEY: of ids that no cell has, too, an int64."""
    key = location << 32 | sku
    return key - (1 << 64) if key >> 63 else key


def available_of(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """What may be sold of cells given as rows (n, CELL_WORDS)."""
    kept: NDArray[np.int64] = cells[:, ON_HAND + 1 : SAFETY_STOCK + 1].sum(axis=1)
    return cells[:, ON_HAND] - kept


class Mirror:
    """The cells of one shard as of one block.

    `stamp` is the newest block that is in it, `now_ns` that block's time. `base` is the place from
    which on `changed_since` can tell what has changed.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.stamp = self.base = 0
        self.now_ns = 0
        self._forget()

    def _forget(self) -> None:
        self._count = 0
        self._crc: int | None = None  # of the newest block; None: not known, since it was not read
        self._cells = np.zeros((_FIRST_ROWS, CELL_WORDS), np.int64)
        self._stamps = np.zeros((_FIRST_ROWS, 2), np.int64)
        self._index = _KeyIndex()
        self._locations: dict[int, _Rows] = {}
        self._endangered: dict[int, Endangered] = {}  # by row: of cells that are short

    # ------------------------------------------------------------------------------- changing --

    def load(self, table: NDArray[np.int64], epoch: int, seq: int, now_ns: int) -> None:
        """Take over a shard's whole table (n, CELL_WORDS), as of one block, and forget the rest."""
        stamp = stamp_of(epoch, seq)
        self._forget()
        self._append_rows(table[:, KEY])
        self._cells[: self._count] = table
        self._stamps[: self._count] = stamp
        self.stamp = self.base = stamp
        self.now_ns = now_ns

    def reload(
        self, table: NDArray[np.int64], epoch: int, seq: int, now_ns: int
    ) -> NDArray[np.int32] | None:
        """Catch up by a newer table: like one block that touches every row that differs.

        Returns these rows. The base stays, since a row that changed meanwhile bears the new stamp.
        Returns None, with nothing done, when the table is not a later state of the same cells: it
        is older, has fewer rows, or other keys. Then only `load` helps.
        """
        stamp, count = stamp_of(epoch, seq), self._count
        if stamp < self.stamp or len(table) < count:
            return None
        if not np.array_equal(table[:count, KEY], self._cells[:count, KEY]):
            return None
        old = self._cells[:count]
        prices = slice(PRICE, VERSION + 1)
        changed = np.zeros((len(table), 2), bool)
        changed[count:] = True
        changed[:count, _STOCK] = (table[:count, ON_HAND:PRICE] != old[:, ON_HAND:PRICE]).any(
            axis=1
        )
        changed[:count, _PRICE] = (table[:count, prices] != old[:, prices]).any(axis=1)
        self._append_rows(table[count:, KEY])
        self._cells[: self._count] = table
        self._stamps[: self._count][changed] = stamp
        self._forget_well(np.array(list(self._endangered), np.int32))
        # What became of the holds in the blocks that were not read nobody has said.
        for row, each in self._endangered.items():
            self._endangered[row] = each._replace(holds=())
        self.stamp, self.now_ns, self._crc = stamp, now_ns, None
        return np.flatnonzero(changed.any(axis=1)).astype(np.int32)

    def apply(self, block: Block, crc: int) -> NDArray[np.int32]:
        """Set the touched cells as the block's after-image says, and return their rows, each once.

        `crc` is the block's own (`engine.framing.crc_of`). Raises MirrorBroken when the block is not
        the next one: the next `seq` with the CRC of the block before, or the opening of a later
        epoch. And when it changed so many cells that it does not tell their state.
        """
        stamp = self._check_follows(block)
        image = block.image
        rows = _NO_ROWS
        if image is not None and len(image.rows):
            if image.words is None:
                raise MirrorBroken(
                    f"shard {self.shard}: {block.epoch}-{block.seq} does not tell the"
                    f" {len(image.rows)} cells that it changed"
                )
            self._check_image(image)
            self._append_rows(image.new_keys)
            promised = self._promised(image.rows)
            self._set(image, image.words, stamp)
            rows = image.rows
            self._forget_names(block, promised)
        self._note_endangered(block, rows)
        self.stamp, self._crc = stamp, crc
        self.now_ns = max(self.now_ns, block.now_ns)  # an owner that opens knows no time yet
        return rows

    def _promised(self, rows: NDArray[np.int32]) -> dict[int, bytes]:
        """What has been promised of those of the rows whose shortage is known."""
        if not self._endangered:
            return {}
        known = self._endangered.keys() & set(rows.tolist())
        return {row: self._cells[row, RESERVED : COMMITTED + 1].tobytes() for row in known}

    def _forget_names(self, block: Block, promised: dict[int, bytes]) -> None:
        """Keep no names of holds on cells of whose promises some are others since they were named.

        Which hold has which units is known to the shard alone. What one gives up while another gets
        as much leaves the counters as they were; the block traces it.
        """
        if not promised:
            return
        traced = None if block.traces is None else set(block.traces.row.tolist())
        for row, before in promised.items():
            is_other = self._cells[row, RESERVED : COMMITTED + 1].tobytes() != before
            if is_other or traced is None or row in traced:
                self._endangered[row] = self._endangered[row]._replace(holds=())

    def _note_endangered(self, block: Block, rows: NDArray[np.int32]) -> None:
        """Keep what the newest fact said of each cell that is short, until it is no more."""
        if block.endangered:
            keys = [key_of(each.sku, each.location) for each in block.endangered]
            found = self.find(np.array(keys, np.int64)).tolist()
            self._endangered.update(zip(found, block.endangered, strict=True))
        self._forget_well(rows)

    def _forget_well(self, rows: NDArray[np.int32]) -> None:
        """A shortage is over when the stock is back."""
        if self._endangered and len(rows):
            well = rows[available_of(self._cells[rows]) >= 0]
            for row in self._endangered.keys() & set(well.tolist()):
                del self._endangered[row]

    def endangered(self, rows: NDArray[np.int32]) -> list[Endangered]:
        """What facts said of the shortages of these rows; no holds where promises changed since."""
        known = self._endangered
        return [known[row] for row in rows.tolist() if row in known] if known else []

    def _check_follows(self, block: Block) -> int:
        epoch, seq = place_of(self.stamp)
        if block.shard != self.shard:
            raise MirrorBroken(f"shard {self.shard}: block of shard {block.shard}")
        if block.epoch > epoch and block.seq == 0:
            # An owner opens its epoch without having read the block before: no chain to it.
            return stamp_of(block.epoch, 0)
        if (block.epoch, block.seq) != (epoch, seq + 1):
            raise MirrorBroken(
                f"shard {self.shard}: {block.epoch}-{block.seq} cannot follow {epoch}-{seq}"
            )
        if self._crc is not None and block.previous_crc != self._crc:
            raise MirrorBroken(
                f"shard {self.shard}: {block.epoch}-{block.seq} follows a block with the CRC "
                f"{block.previous_crc:08x}, the one here has {self._crc:08x}"
            )
        return stamp_of(block.epoch, block.seq)

    def _check_image(self, image: AfterImage) -> None:
        if len(image.new_keys) and image.first_new != self._count:
            raise MirrorBroken(
                f"shard {self.shard}: new rows from {image.first_new} on, there are {self._count}"
            )
        limit = self._count + len(image.new_keys)
        if int(image.rows.min()) < 0 or int(image.rows.max()) >= limit:
            raise MirrorBroken(f"shard {self.shard}: a row beyond the {limit} that there are")

    def _set(self, image: AfterImage, words: dict[int, NDArray[np.int64]], stamp: int) -> None:
        """Assign the words.

        A row that was touched and shows no change counts as stock: something was sold and restocked
        within the block.
        """
        rows, cells = image.rows, self._cells
        changed = np.zeros((len(rows), 2), bool)
        for word, values in words.items():
            here = changed[:, _PRICE if word in {PRICE, VERSION} else _STOCK]
            here |= cells[rows, word] != values
            cells[rows, word] = values
        changed[:, _STOCK] |= ~changed[:, _PRICE]
        if len(image.new_keys):
            changed[rows >= image.first_new] = True
        for column in (_STOCK, _PRICE):
            self._stamps[rows[changed[:, column]], column] = stamp

    def _append_rows(self, keys: NDArray[np.int64]) -> None:
        if not len(keys):
            return
        first, count = self._count, self._count + len(keys)
        self._cells = _with_room(self._cells, first, count)
        self._stamps = _with_room(self._stamps, first, count)
        self._cells[first:count, KEY] = keys
        self._count = count
        self._index.add(self._cells[:, KEY], first, count)
        for location, places in _groups(keys >> 32):
            rows = self._locations.get(location)
            if rows is None:
                rows = self._locations[location] = _Rows()
            rows.add((places + first).astype(np.int32))

    # -------------------------------------------------------------------------------- reading --

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self._count

    @property
    def cells(self) -> NDArray[np.int64]:
        """All rows (count, CELL_WORDS): a view that the next block changes. Not to be written."""
        return self._cells[: self._count]

    def rows_of(self, location: int) -> NDArray[np.int32]:
        """The rows of a location, in order: a view that the next block may add to."""
        rows = self._locations.get(location)
        return _NO_ROWS if rows is None else rows.view()

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of cells by key (n,); -1 where there is none."""
        return self._index.find(self._cells[:, KEY], keys)

    def cell(self, sku: int, location: int) -> NDArray[np.int64] | None:
        """A copy of one cell's row (CELL_WORDS,); None when nothing is known of the cell."""
        row = int(self.find(np.array([key_of(sku, location)], np.int64))[0])
        return None if row < 0 else self._cells[row].copy()

    def select(
        self, locations: Iterable[int] | None, skus: NDArray[np.int64] | None
    ) -> NDArray[np.int32]:
        """The rows of these locations and these SKUs (sorted); None: of all. In order of row."""
        if locations is None:
            rows = np.arange(self._count, dtype=np.int32)
        else:
            parts = [self.rows_of(location) for location in locations]
            rows = np.sort(np.concatenate(parts)) if parts else _NO_ROWS
        if skus is None:
            return rows
        return rows[among(self._cells[rows, KEY] & 0xFFFFFFFF, skus)]

    def changed_since(
        self, rows: NDArray[np.int32], stamp: int, fields: Fields
    ) -> NDArray[np.int32]:
        """Those of the rows that a block after `stamp` changed; `stamp` must not be before `base`."""
        return rows[self.changed_mask(rows, stamp, fields)]

    def changed_mask(
        self, rows: NDArray[np.int32], stamp: int, fields: Fields
    ) -> NDArray[np.bool_]:
        """For each of the rows, whether a block after `stamp` changed it."""
        newer = self._stamps[rows] > stamp
        if fields is Fields.ALL:
            return newer[:, _STOCK] | newer[:, _PRICE]
        return newer[:, _STOCK if fields is Fields.STOCK else _PRICE]


def among(values: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are among `of`, which is sorted and not empty."""
    places = np.searchsorted(of, values)
    found: NDArray[np.bool_] = of[np.minimum(places, len(of) - 1)] == values
    return found


class _Rows:
    """Row numbers that are only ever added to."""

    __slots__ = ("_count", "_rows")

    def __init__(self) -> None:
        self._rows = np.zeros(8, np.int32)
        self._count = 0

    def add(self, rows: NDArray[np.int32]) -> None:
        count = self._count + len(rows)
        self._rows = _with_room(self._rows, self._count, count)
        self._rows[self._count : count] = rows
        self._count = count

    def view(self) -> NDArray[np.int32]:
        return self._rows[: self._count]


class _KeyIndex:
    """Key to row: open addressing over row + 1, in numpy, a whole batch in a few passes.

    The keys themselves stand in the table, whose column `keys` comes with every call.
    """

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots = np.zeros(4 * _FIRST_ROWS, np.int32)

    def add(self, keys: NDArray[np.int64], first: int, count: int) -> None:
        """Enter rows [first, count), whose keys are new; at most half of the slots are in use."""
        if 2 * count > len(self._slots):
            self._slots = np.zeros(1 << (4 * count - 1).bit_length(), np.int32)
            first = 0
        for start in range(first, count, 1 << 16):  # so that a rebuild's scratch stays small
            self._enter(keys, np.arange(start, min(count, start + (1 << 16)), dtype=np.int64))

    def _enter(self, keys: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        slots, mask = self._slots, len(self._slots) - 1
        at = _hashed(keys[rows]) & mask
        while len(rows):
            free = slots[at] == 0
            slots[at[free]] = rows[free] + 1
            # Of several rows that want one slot, the last has it now; the others go on.
            left = slots[at] != rows + 1
            rows, at = rows[left], (at[left] + 1) & mask

    def find(self, keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        slots, mask = self._slots, len(self._slots) - 1
        found = np.full(len(wanted), -1, np.int64)
        open_, at = np.arange(len(wanted)), _hashed(wanted) & mask
        while len(open_):
            rows = slots[at].astype(np.int64) - 1
            hit = (rows >= 0) & (keys[rows] == wanted[open_])
            found[open_[hit]] = rows[hit]
            left = (rows >= 0) & ~hit
            open_, at = open_[left], (at[left] + 1) & mask
        return found


def _hashed(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """48 well mixed bits of each key."""
    x = keys.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(16)).astype(np.int64)


def _groups(values: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
    """Each distinct value with the places where it stands, in order."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    yield from zip(ordered[starts].tolist(), np.split(order, starts[1:]), strict=True)


def _with_room(array: NDArray[_T], used: int, needed: int) -> NDArray[_T]:
    """The array, or a copy of its used part with room for `needed` entries and some more."""
    if needed <= len(array):
        return array
    size = max(needed, len(array) * 2 if len(array) < 1 << 20 else len(array) * 5 // 4)
    grown = np.zeros((size, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown

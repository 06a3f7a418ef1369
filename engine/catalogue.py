"""The catalogue: codes of SKUs, locations and channels to dense ids, and back; its blocks as bytes.

Ids are given in order from 1 and never change or come back, so an id is also an index. What exists
is never altered, but for the rules of channels and the codes of SKUs: changes are planned against the catalogue (which
finds what is malformed and what is new), journaled as a block, and only then applied. A block:

    u32 header length | msgpack header | msgpack columns of the entries | u32 CRC32C of all before

This module knows nothing of who owns the stream or of which shard owns a location.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgpack
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from engine import currencies, limits
from engine.block import BlockDamaged, crc_of
from engine.changes import Asked, ChangeMemory
from engine.channels import Channels
from engine.codes import SkuCodes
from engine.entries import (
    CatalogueFull,
    Channel,
    Component,
    InvalidEntry,
    Location,
    Rename,
    Sku,
    Unit,
    check_length,
    check_location,
    check_sku,
)

FORMAT: Final = 4  # 1 knew neither channels nor bundles
READABLE: Final = (2, 3, FORMAT)  # 2 knew no new codes of SKUs, 3 no op_ids; the same otherwise
_LENGTH: Final = struct.Struct("<I")


class Catalogue:
    """SKUs and locations, by code and by id, which only ever grow; and channels with their rules."""

    def __init__(self) -> None:
        self.channels: Final = Channels()
        self.codes: Final = SkuCodes()
        self.changes: Final = ChangeMemory()
        # Index 0 is nobody, so that an id is an index.
        self._units = bytearray(1)
        self._descriptions = [""]
        self._gtins = [""]  # of one SKU: joined with blanks, which is half the size of a tuple
        self._gtin_owners: dict[int, int] = {}  # the GTIN as a number: leading zeros say nothing
        self._bundles: dict[int, tuple[Component, ...]] = {}
        self._is_bundle = np.zeros(1, np.bool_)  # by id, up to one past the last bundle's
        self._parts: set[int] = set()  # every SKU that is a component
        self._location_ids: dict[str, int] = {}
        self._location_codes = [""]
        self._currencies = array("H", [0])
        self._location_descriptions = [""]

    # ------------------------------------------------------------------------------- look-ups --

    @property
    def skus(self) -> int:
        """How many SKUs there are, which is the highest id."""
        return len(self.codes)

    @property
    def locations(self) -> int:
        """How many locations there are, which is the highest id."""
        return len(self._location_codes) - 1

    def sku_id(self, code: str) -> int:
        """The id of the SKU that has or had a code; 0: unknown."""
        return self.codes.find(code)

    @property
    def renames(self) -> int:
        """How many times a SKU has got a new code: who keeps codes looks again when it grows."""
        return self.codes.renames

    def location_id(self, code: str) -> int:
        """The id of a location's code; 0: unknown."""
        return self._location_ids.get(code, 0)

    def sku_of_gtin(self, gtin: str) -> int:
        """The id of the SKU that has a barcode; 0: none has, or it is not a number."""
        is_number = gtin.isascii() and gtin.isdigit() and len(gtin) <= limits.MAX_GTIN_DIGITS
        return self._gtin_owners.get(int(gtin), 0) if is_number else 0

    def sku(self, sku_id: int) -> Sku:
        """Show a SKU, by its code in force. KeyError when there is no such id."""
        if not 0 < sku_id <= self.skus:
            raise KeyError(sku_id)
        return Sku(
            self.codes.code(sku_id),
            self._units[sku_id],
            self._descriptions[sku_id],
            tuple(self._gtins[sku_id].split()),
            self.components(sku_id),
        )

    @property
    def has_bundles(self) -> bool:
        """Whether any SKU is a bundle."""
        return bool(self._bundles)

    def components(self, sku_id: int) -> tuple[Component, ...]:
        """What one piece of a bundle is made of; nothing for any other id."""
        return self._bundles.get(sku_id, ())

    def is_component(self, sku_id: int) -> bool:
        """Whether some bundle is made of a SKU."""
        return sku_id in self._parts

    def are_bundles(self, skus: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which ids of a column (n,) are those of bundles."""
        return self._is_bundle.take(skus, mode="clip")  # what is past the end is its last value

    def channel_number(self, code: str) -> int:
        """The number of a channel's code; 0 for no code, NO_SUCH_CHANNEL for an unknown one."""
        return self.channels.number(code)

    def location(self, location_id: int) -> Location:
        """Show a location. KeyError when there is no such id."""
        number = self.currency(location_id)
        return Location(
            self._location_codes[location_id],
            currencies.CODES[number],
            self._location_descriptions[location_id],
        )

    def currency(self, location_id: int) -> int:
        """The ISO 4217 numeric code of a location's currency. KeyError when there is no such id."""
        if not 0 < location_id < len(self._currencies):
            raise KeyError(location_id)
        return self._currencies[location_id]

    # ------------------------------------------------------------------------------ additions --

    def plan_skus(self, entries: Sequence[Sku]) -> tuple[list[int], list[Sku]]:
        """The ids that the entries have or will have, in order, and those that are new.

        A code that exists (also one that a SKU had before) keeps its id and its data, of a code
        that comes twice, the first entry counts; but it cannot be counted in another unit, nor be made of something else. Changes
        nothing. Raises InvalidEntry (of the first entry that is malformed) and CatalogueFull.
        """
        check_length(len(entries), "skus")
        ids: list[int] = []
        new: list[Sku] = []
        given: dict[str, int] = {}
        gtins: dict[int, str] = {}
        for i, entry in enumerate(entries):
            check_sku(entry, i)
            found = self.codes.find(entry.code) or given.get(entry.code)
            if found is not None:
                first = new[found - self.skus - 1] if found > self.skus else None
                self._check_unchanged(entry, i, found, first)
            else:
                if entry.components:
                    self._check_parts(entry, i)
                own = self._own_gtins(entry, i, gtins) if entry.gtins else ()
                new.append(entry if own == entry.gtins else entry._replace(gtins=own))
                found = given[entry.code] = self.skus + len(new)
            ids.append(found)
        if self.skus + len(new) > limits.MAX_SKUS:
            raise CatalogueFull(f"{limits.MAX_SKUS} SKUs is the most, there are {self.skus}")
        return ids, new

    def plan_locations(self, entries: Sequence[Location]) -> tuple[list[int], list[Location]]:
        """Plan additions of locations, as `plan_skus` does those of SKUs; a currency stays too."""
        check_length(len(entries), "locations")
        ids: list[int] = []
        new: list[Location] = []
        given: dict[str, int] = {}
        for i, entry in enumerate(entries):
            check_location(entry, i)
            found = self._location_ids.get(entry.code) or given.get(entry.code)
            if found is None:
                new.append(entry)
                found = given[entry.code] = self.locations + len(new)
            else:
                is_new = found > self.locations
                was = new[found - self.locations - 1] if is_new else self.location(found)
                if was.currency != entry.currency:
                    reason = f"{entry.code!r} has {was.currency}, which never changes"
                    raise InvalidEntry(f"locations[{i}].currency", reason)
            ids.append(found)
        if self.locations + len(new) > limits.MAX_LOCATIONS:
            most = limits.MAX_LOCATIONS
            raise CatalogueFull(f"{most} locations is the most, there are {self.locations}")
        return ids, new

    def plan_channel(self, entry: Channel) -> tuple[int, Channel | None]:
        """The number that a channel has or will have, and what to set; None: it is so already.

        Changes nothing. Raises InvalidEntry and CatalogueFull.
        """
        return self.channels.plan(entry, self.locations)

    def plan_rename(self, entry: Rename) -> Rename | None:
        """The new code to give to a SKU; None: it has it already. See `SkuCodes.plan`."""
        return self.codes.plan(entry)

    def apply(self, block: "CatalogueBlock") -> None:
        """Add what a block adds: all of it, or nothing and BlockDamaged when it does not fit."""
        if block.opens_epoch:
            return
        self._check_fits(block)
        location_codes = [entry.code for entry in block.locations]
        owners = self._new_gtins(block)
        try:
            numbers = [currencies.NUMBERS[entry.currency] for entry in block.locations]
        except KeyError as error:
            raise BlockDamaged(f"currency {error} is not known to this version") from error

        self.codes.add([entry.code for entry in block.skus])
        self._units += bytes(entry.unit for entry in block.skus)
        self._descriptions += [entry.description for entry in block.skus]
        self._gtins += [" ".join(entry.gtins) for entry in block.skus]
        self._gtin_owners.update(owners)
        self._add_bundles(block)
        numbered = range(self.locations + 1, 1 << 32)
        self._location_ids.update(zip(location_codes, numbered, strict=False))
        self._location_codes += location_codes
        self._currencies.extend(numbers)
        self._location_descriptions += [entry.description for entry in block.locations]
        if block.channel is not None:
            self.channels.set(block.channel)
        if block.rename is not None:
            self.codes.rename(block.rename)
        if block.asked is not None:
            is_change = block.channel is not None or block.rename is not None
            self.changes.remember(block.asked, changed=is_change)

    def _check_fits(self, block: "CatalogueBlock") -> None:
        if (block.known_skus, block.known_locations) != (self.skus, self.locations):
            raise BlockDamaged(
                f"it follows {block.known_skus} SKUs and {block.known_locations} locations,"
                f" here are {self.skus} and {self.locations}"
            )
        try:
            for i, entry in enumerate(block.skus):
                if entry.components:
                    self._check_parts(entry, i)
            if block.channel is not None:
                self.plan_channel(block.channel)
            if block.rename is not None and self.plan_rename(block.rename) is None:
                raise BlockDamaged(f"SKU {block.rename.sku} has the code already that it gives")
        except (InvalidEntry, CatalogueFull) as error:
            raise BlockDamaged(f"it adds what may not be: {error}") from error
        codes = [entry.code for entry in block.locations]
        is_new = len(set(codes)) == len(codes) and self._location_ids.keys().isdisjoint(codes)
        if not (is_new and self.codes.are_new([entry.code for entry in block.skus])):
            raise BlockDamaged("it adds a code that exists")

    def _new_gtins(self, block: "CatalogueBlock") -> dict[int, int]:
        """The owners of the GTINs that a block adds; BlockDamaged when one has an owner."""
        owners = {
            int(g): i for i, entry in enumerate(block.skus, self.skus + 1) for g in entry.gtins
        }
        is_each_once = len(owners) == sum(len(entry.gtins) for entry in block.skus)
        if not (is_each_once and self._gtin_owners.keys().isdisjoint(owners)):
            raise BlockDamaged("it gives a GTIN away that another SKU has")
        return owners

    def _add_bundles(self, block: "CatalogueBlock") -> None:
        numbered = enumerate(block.skus, block.known_skus + 1)
        bundles = {i: entry.components for i, entry in numbered if entry.components}
        if bundles:
            grown = np.zeros(max(bundles) + 2, np.bool_)
            grown[: len(self._is_bundle)] = self._is_bundle
            grown[list(bundles)] = True
            self._is_bundle = grown
            self._bundles |= bundles
            self._parts |= {part.sku for parts in bundles.values() for part in parts}

    def _check_unchanged(self, entry: Sku, i: int, sku_id: int, first: Sku | None) -> None:
        """InvalidEntry when a code comes again as something else; `first`: where it came before."""
        unit = self._units[sku_id] if first is None else first.unit
        if entry.unit != unit:
            reason = f"{entry.code!r} is counted in {Unit(unit).name}, which never changes"
            raise InvalidEntry(f"skus[{i}].unit", reason)
        components = self.components(sku_id) if first is None else first.components
        if dict(entry.components) != dict(components):
            what = f"a bundle of {len(components)} components" if components else "no bundle"
            reason = f"{entry.code!r} is {what}, and what it is made of never changes"
            raise InvalidEntry(f"skus[{i}].components", reason)

    def _check_parts(self, entry: Sku, i: int) -> None:
        """InvalidEntry unless a bundle's components exist and are no bundles."""
        for j, (sku, _) in enumerate(entry.components):
            if not 1 <= sku <= self.skus:
                reason = "is not in the catalogue; add components before what is made of them"
            elif sku in self._bundles:
                reason = f"{self.codes.code(sku)!r} is a bundle itself"
            else:
                continue
            raise InvalidEntry(f"skus[{i}].components[{j}].sku", reason)

    def _own_gtins(self, entry: Sku, i: int, given: dict[int, str]) -> tuple[str, ...]:
        """A new SKU's GTINs, each once. InvalidEntry when one of them is another SKU's."""
        own: dict[int, str] = {}
        for j, gtin in enumerate(entry.gtins):
            number = int(gtin)
            if number in self._gtin_owners or number in given:
                owner = self._gtin_owners.get(number)
                code = given[number] if owner is None else self.codes.code(owner)
                field = f"skus[{i}].gtins[{j}]"
                raise InvalidEntry(field, f"{gtin} is a barcode of SKU {code!r} already")
            own.setdefault(number, gtin)
        for number in own:
            given[number] = entry.code
        return entry.gtins if len(own) == len(entry.gtins) else tuple(own.values())


# --------------------------------------------------------------------------------------- blocks --


@dataclass(frozen=True, slots=True)
class CatalogueBlock:
    """One block of the catalogue's stream: its place there, and what it adds.

    `known_skus` and `known_locations` count what the catalogue held before, so the first new SKU
    has the id known_skus + 1. `channel` is one that is new or has new rules; it may name locations
    that were there before. `rename` gives a SKU that was there before a new code. `asked`
    is the request that either was made for; alone, one that found all as it asked for. `shard_map` is a
    new shard map as `engine.shard_map` encodes it.
    `nonce` is set in the opening block of an epoch, which adds nothing and whose writer does not yet
    know what came before: its counts and `previous_crc` are 0.
    """

    epoch: int
    seq: int
    previous_crc: int = 0
    known_skus: int = 0
    known_locations: int = 0
    skus: Sequence[Sku] = ()
    locations: Sequence[Location] = ()
    shard_map: bytes = b""
    nonce: bytes = b""
    channel: Channel | None = None
    rename: Rename | None = None
    asked: Asked | None = None

    @property
    def opens_epoch(self) -> bool:
        """Whether this is the first block of its epoch."""
        return self.seq == 0


def encode(block: CatalogueBlock) -> bytes:
    """The bytes of a block; `engine.block.crc_of` tells the CRC that they end with.

    ValueError when they are more than MAX_BLOCK_BYTES, which no one could read back.
    """
    header = msgpack.packb(
        {
            "v": FORMAT,
            "epoch": block.epoch,
            "seq": block.seq,
            "prev": block.previous_crc,
            "known": [block.known_skus, block.known_locations],
            "added": [len(block.skus), len(block.locations)],
            "map": block.shard_map,
            "nonce": block.nonce,
            "channel": block.channel,
            "rename": block.rename,
            "asked": block.asked,
        }
    )
    parts = [entry.components for entry in block.skus]
    columns = msgpack.packb(
        [
            [entry.code for entry in block.skus],
            bytes(entry.unit for entry in block.skus),
            _column([entry.description for entry in block.skus]),
            _column([" ".join(entry.gtins) for entry in block.skus]),
            bytes(map(len, parts)) if any(parts) else b"",
            [number for components in parts for part in components for number in part],
            [entry.code for entry in block.locations],
            [entry.currency for entry in block.locations],
            _column([entry.description for entry in block.locations]),
        ]
    )
    body = b"".join((_LENGTH.pack(len(header)), header, columns))
    if len(body) + _LENGTH.size > limits.MAX_BLOCK_BYTES:
        raise ValueError(f"a block is at most {limits.MAX_BLOCK_BYTES} bytes, not {len(body)}")
    return body + _LENGTH.pack(crc32c(body))


def decode(payload: bytes) -> CatalogueBlock:
    """Read a block back. Raises BlockDamaged unless every byte is as it was written."""
    if len(payload) < 8 or len(payload) > limits.MAX_BLOCK_BYTES:
        raise BlockDamaged(f"{len(payload)} bytes cannot be a block")
    view = memoryview(payload)
    if crc32c(view[:-4]) != crc_of(payload):
        raise BlockDamaged("the CRC32C does not match")
    try:
        return _decode(view)
    except BlockDamaged:
        raise
    except (KeyError, ValueError, TypeError, struct.error) as error:
        # The CRC matched, so this was written so: a foreign or a future format.
        raise BlockDamaged(f"not a catalogue block of format {FORMAT}: {error}") from error


def _decode(view: memoryview) -> CatalogueBlock:
    start = _LENGTH.size + _LENGTH.unpack_from(view)[0]
    header = msgpack.unpackb(view[_LENGTH.size : start])
    if header["v"] not in READABLE:
        raise BlockDamaged(f"format {header['v']}, this is {FORMAT}")
    rename, asked = header.get("rename"), header.get("asked")
    known_skus, known_locations = header["known"]
    skus, locations = header["added"]
    columns = msgpack.unpackb(view[start:-4])
    (
        codes, units, descriptions, gtins, part_counts, parts,
        location_codes, location_currencies, notes,
    ) = columns  # fmt: skip
    return CatalogueBlock(
        header["epoch"],
        header["seq"],
        header["prev"],
        known_skus,
        known_locations,
        list(
            map(
                Sku._make,
                zip(
                    _full(codes, skus),
                    _full(units, skus),
                    _full(descriptions or [""] * skus, skus),
                    _split(gtins, skus),
                    _components(part_counts, parts, skus),
                    strict=True,
                ),
            )
        ),
        list(
            map(
                Location._make,
                zip(
                    _full(location_codes, locations),
                    _full(location_currencies, locations),
                    _full(notes or [""] * locations, locations),
                    strict=True,
                ),
            )
        ),
        header["map"],
        header["nonce"],
        _channel(header["channel"]),
        None if rename is None else Rename(*rename),
        None if asked is None else Asked(*asked),
    )


def _column(values: list[str]) -> list[str]:
    """A column of texts; none at all when every one is empty."""
    return values if any(values) else []


def _channel(row: list[Any] | None) -> Channel | None:
    if row is None:
        return None
    code, buffer, only_listed, locations = row
    return Channel(code, buffer, only_listed, tuple((at, own) for at, own in locations))


def _full(column: Any, count: int) -> Any:
    if len(column) != count:
        raise BlockDamaged(f"a column has {len(column)} values, should have {count}")
    return column


def _split(gtins: list[str], count: int) -> Iterator[tuple[str, ...]]:
    if not gtins:
        return iter([()] * count)
    return (tuple(joined.split()) for joined in _full(gtins, count))


def _components(counts: bytes, numbers: list[int], skus: int) -> Iterator[tuple[Component, ...]]:
    if len(numbers) != 2 * sum(counts):
        raise BlockDamaged(f"{len(numbers)} numbers are not {sum(counts)} components")
    if not counts:
        return iter([()] * skus)
    pairs = map(Component, numbers[::2], numbers[1::2])
    return (tuple(islice(pairs, count)) for count in _full(counts, skus))

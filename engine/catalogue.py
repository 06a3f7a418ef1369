"""The catalogue: codes of SKUs and locations to dense ids, and back; and its blocks as bytes.

Ids are given in order from 1 and never change or come back, so an id is also an index. What exists
is never altered: additions are planned against the catalogue (which finds what is malformed and
what is new), journaled as a block, and only then applied. A block:

    u32 header length | msgpack header | msgpack columns of the entries | u32 CRC32C of all before

This module knows nothing of who owns the stream or of which shard owns a location.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack
from crc32c import crc32c

from engine import currencies, limits
from engine.block import BlockDamaged, crc_of

FORMAT: Final = 1
_LENGTH: Final = struct.Struct("<I")
_SHOWN: Final = 40  # characters of a refused value that its message repeats


class Unit(IntEnum):
    """In what base units a SKU is counted."""

    EA = 0  # pieces
    G = 1  # grams
    ML = 2  # millilitres


_UNITS: Final = frozenset(int(unit) for unit in Unit)


class Sku(NamedTuple):
    """A SKU as it is added and shown. Two spellings of a GTIN (leading zeros) are one GTIN."""

    code: str
    unit: int = Unit.EA
    description: str = ""
    gtins: tuple[str, ...] = ()


class Location(NamedTuple):
    """A location as it is added and shown; `currency` is the alphabetic code of ISO 4217."""

    code: str
    currency: str
    description: str = ""


class InvalidEntry(ValueError):  # noqa: N818 - one of the refusals that the edge passes on
    """An entry of a request is malformed: which field it is, and what is wrong with it."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class CatalogueFull(ValueError):  # noqa: N818
    """There are no ids left."""


class Catalogue:
    """SKUs and locations, by code and by id. It only ever grows."""

    def __init__(self) -> None:
        # Index 0 is nobody, so that an id is an index.
        self._sku_ids: dict[str, int] = {}
        self._sku_codes = [""]
        self._units = bytearray(1)
        self._descriptions = [""]
        self._gtins = [""]  # of one SKU: joined with blanks, which is half the size of a tuple
        self._gtin_owners: dict[int, int] = {}  # the GTIN as a number: leading zeros say nothing
        self._location_ids: dict[str, int] = {}
        self._location_codes = [""]
        self._currencies = array("H", [0])
        self._location_descriptions = [""]

    # ------------------------------------------------------------------------------- look-ups --

    @property
    def skus(self) -> int:
        """How many SKUs there are, which is the highest id."""
        return len(self._sku_codes) - 1

    @property
    def locations(self) -> int:
        """How many locations there are, which is the highest id."""
        return len(self._location_codes) - 1

    def sku_id(self, code: str) -> int:
        """The id of a SKU's code; 0: unknown."""
        return self._sku_ids.get(code, 0)

    def location_id(self, code: str) -> int:
        """The id of a location's code; 0: unknown."""
        return self._location_ids.get(code, 0)

    def sku_of_gtin(self, gtin: str) -> int:
        """The id of the SKU that has a barcode; 0: none has, or it is not a number."""
        is_number = gtin.isascii() and gtin.isdigit() and len(gtin) <= limits.MAX_GTIN_DIGITS
        return self._gtin_owners.get(int(gtin), 0) if is_number else 0

    def sku(self, sku_id: int) -> Sku:
        """Show a SKU. KeyError when there is no such id."""
        if not 0 < sku_id < len(self._sku_codes):
            raise KeyError(sku_id)
        return Sku(
            self._sku_codes[sku_id],
            self._units[sku_id],
            self._descriptions[sku_id],
            tuple(self._gtins[sku_id].split()),
        )

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

        A code that exists keeps its id and its data; of a code that comes twice, the first entry
        counts. Changes nothing. Raises InvalidEntry (of the first entry that is malformed) and
        CatalogueFull.
        """
        _check_length(len(entries), "skus")
        ids: list[int] = []
        new: list[Sku] = []
        given: dict[str, int] = {}
        gtins: dict[int, str] = {}
        for i, entry in enumerate(entries):
            _check_sku(entry, i)
            found = self._sku_ids.get(entry.code) or given.get(entry.code)
            if found is None:
                own = self._own_gtins(entry, i, gtins) if entry.gtins else ()
                new.append(entry if own == entry.gtins else entry._replace(gtins=own))
                found = given[entry.code] = self.skus + len(new)
            ids.append(found)
        if self.skus + len(new) > limits.MAX_SKUS:
            raise CatalogueFull(f"{limits.MAX_SKUS} SKUs is the most, there are {self.skus}")
        return ids, new

    def plan_locations(self, entries: Sequence[Location]) -> tuple[list[int], list[Location]]:
        """Plan additions of locations, as `plan_skus` does those of SKUs."""
        _check_length(len(entries), "locations")
        ids: list[int] = []
        new: list[Location] = []
        given: dict[str, int] = {}
        for i, entry in enumerate(entries):
            _check_location(entry, i)
            found = self._location_ids.get(entry.code) or given.get(entry.code)
            if found is None:
                new.append(entry)
                found = given[entry.code] = self.locations + len(new)
            ids.append(found)
        if self.locations + len(new) > limits.MAX_LOCATIONS:
            most = limits.MAX_LOCATIONS
            raise CatalogueFull(f"{most} locations is the most, there are {self.locations}")
        return ids, new

    def apply(self, block: "CatalogueBlock") -> None:
        """Add what a block adds: all of it, or nothing and BlockDamaged when it does not fit."""
        if block.opens_epoch:
            return
        if (block.known_skus, block.known_locations) != (self.skus, self.locations):
            raise BlockDamaged(
                f"it follows {block.known_skus} SKUs and {block.known_locations} locations,"
                f" here are {self.skus} and {self.locations}"
            )
        sku_codes = [entry.code for entry in block.skus]
        location_codes = [entry.code for entry in block.locations]
        _check_new(sku_codes, self._sku_ids)
        _check_new(location_codes, self._location_ids)
        owners = {
            int(g): i for i, entry in enumerate(block.skus, self.skus + 1) for g in entry.gtins
        }
        is_each_once = len(owners) == sum(len(entry.gtins) for entry in block.skus)
        if not (is_each_once and self._gtin_owners.keys().isdisjoint(owners)):
            raise BlockDamaged("it gives a GTIN away that another SKU has")
        try:
            numbers = [currencies.NUMBERS[entry.currency] for entry in block.locations]
        except KeyError as error:
            raise BlockDamaged(f"currency {error} is not known to this version") from error

        self._sku_ids.update(zip(sku_codes, range(self.skus + 1, 1 << 32), strict=False))
        self._sku_codes += sku_codes
        self._units += bytes(entry.unit for entry in block.skus)
        self._descriptions += [entry.description for entry in block.skus]
        self._gtins += [" ".join(entry.gtins) for entry in block.skus]
        self._gtin_owners.update(owners)
        numbered = range(self.locations + 1, 1 << 32)
        self._location_ids.update(zip(location_codes, numbered, strict=False))
        self._location_codes += location_codes
        self._currencies.extend(numbers)
        self._location_descriptions += [entry.description for entry in block.locations]

    def _own_gtins(self, entry: Sku, i: int, given: dict[int, str]) -> tuple[str, ...]:
        """A new SKU's GTINs, each once. InvalidEntry when one of them is another SKU's."""
        own: dict[int, str] = {}
        for j, gtin in enumerate(entry.gtins):
            number = int(gtin)
            if number in self._gtin_owners or number in given:
                owner = self._gtin_owners.get(number)
                code = given[number] if owner is None else self._sku_codes[owner]
                field = f"skus[{i}].gtins[{j}]"
                raise InvalidEntry(field, f"{gtin} is a barcode of SKU {code!r} already")
            own.setdefault(number, gtin)
        for number in own:
            given[number] = entry.code
        return entry.gtins if len(own) == len(entry.gtins) else tuple(own.values())


def _check_new(codes: list[str], known: dict[str, int]) -> None:
    if len(set(codes)) != len(codes) or not known.keys().isdisjoint(codes):
        raise BlockDamaged("it adds a code that exists")


# ------------------------------------------------------------------------------ what is allowed --


def _check_length(count: int, field: str) -> None:
    if not 1 <= count <= limits.MAX_CATALOG_ENTRIES:
        raise InvalidEntry(field, f"{count} entries, must be 1 to {limits.MAX_CATALOG_ENTRIES}")


def _check_sku(entry: Sku, i: int) -> None:
    code, unit, description, gtins = entry
    if not _is_code(code):
        raise _refused_code(code, f"skus[{i}].code")
    if unit not in _UNITS:
        raise InvalidEntry(f"skus[{i}].unit", f"{unit} is not a unit (0 EA, 1 G, 2 ML)")
    if description:
        _check_description(description, f"skus[{i}].description")
    if gtins:
        _check_gtins(gtins, f"skus[{i}].gtins")


def _check_location(entry: Location, i: int) -> None:
    code, currency, description = entry
    if not _is_code(code):
        raise _refused_code(code, f"locations[{i}].code")
    if currency not in currencies.NUMBERS:
        shown = repr(currency[:_SHOWN])
        reason = f"{shown} is not an alphabetic code of ISO 4217, like 'USD'"
        raise InvalidEntry(f"locations[{i}].currency", reason)
    if description:
        _check_description(description, f"locations[{i}].description")


def _is_code(code: str) -> bool:
    return 0 < len(code) <= limits.MAX_CODE_LENGTH and code.isprintable() and code == code.strip()


def _refused_code(code: str, field: str) -> InvalidEntry:
    """Say what is wrong with a code that `_is_code` refused."""
    if not 1 <= len(code) <= limits.MAX_CODE_LENGTH:
        reason = f"{len(code)} characters, must be 1 to {limits.MAX_CODE_LENGTH}"
    elif not code.isprintable():
        reason = f"{code!r} has characters that cannot be printed"
    else:
        reason = f"{code!r} begins or ends with a blank"
    return InvalidEntry(field, reason)


def _check_description(description: str, field: str) -> None:
    if len(description) > limits.MAX_DESCRIPTION:
        reason = f"{len(description)} characters, must be at most {limits.MAX_DESCRIPTION}"
        raise InvalidEntry(field, reason)
    if not description.isascii():
        try:
            description.encode()
        except UnicodeEncodeError as error:
            raise InvalidEntry(field, f"cannot be written as UTF-8: {error.reason}") from error


def _check_gtins(gtins: tuple[str, ...], field: str) -> None:
    if len(gtins) > limits.MAX_GTINS:
        raise InvalidEntry(field, f"{len(gtins)} barcodes, must be at most {limits.MAX_GTINS}")
    least, most = limits.MIN_GTIN_DIGITS, limits.MAX_GTIN_DIGITS
    for j, gtin in enumerate(gtins):
        if not (least <= len(gtin) <= most and gtin.isascii() and gtin.isdigit()):
            shown = repr(gtin[:_SHOWN])
            raise InvalidEntry(f"{field}[{j}]", f"{shown} is not {least} to {most} digits")
        if _weighted_sum(gtin) % 10:
            reason = (
                f"{gtin} has a wrong check digit, should end with {gtin_check_digit(gtin[:-1])}"
            )
            raise InvalidEntry(f"{field}[{j}]", reason)


def gtin_check_digit(digits: str) -> str:
    """The digit that makes a GTIN of the digits before it."""
    return str(-_weighted_sum(digits + "0") % 10)


def _weighted_sum(gtin: str) -> int:
    """The sum of a GTIN's digits, weighted 1, 3, 1, 3, … from its end: a multiple of ten (GS1)."""
    characters = gtin.encode()  # of ASCII digits, whose codes are 48 too high
    weights = 2 * len(characters) - len(characters) % 2
    return 3 * sum(characters[-2::-2]) + sum(characters[::-2]) - 48 * weights


# --------------------------------------------------------------------------------------- blocks --


@dataclass(frozen=True, slots=True)
class CatalogueBlock:
    """One block of the catalogue's stream: its place there, and what it adds.

    `known_skus` and `known_locations` count what the catalogue held before, so the first new SKU
    has the id known_skus + 1. `shard_map` is a new shard map as `engine.shard_map` encodes it.
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
        }
    )
    columns = msgpack.packb(
        [
            [entry.code for entry in block.skus],
            bytes(entry.unit for entry in block.skus),
            _column([entry.description for entry in block.skus]),
            _column([" ".join(entry.gtins) for entry in block.skus]),
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
    if header["v"] != FORMAT:
        raise BlockDamaged(f"format {header['v']}, this is {FORMAT}")
    known_skus, known_locations = header["known"]
    skus, locations = header["added"]
    columns = msgpack.unpackb(view[start:-4])
    codes, units, descriptions, gtins, location_codes, location_currencies, notes = columns
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
    )


def _column(values: list[str]) -> list[str]:
    """A column of texts; none at all when every one is empty."""
    return values if any(values) else []


def _full(column: Any, count: int) -> Any:
    if len(column) != count:
        raise BlockDamaged(f"a column has {len(column)} values, should have {count}")
    return column


def _split(gtins: list[str], count: int) -> Iterator[tuple[str, ...]]:
    if not gtins:
        return iter([()] * count)
    return (tuple(joined.split()) for joined in _full(gtins, count))

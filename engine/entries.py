"""SKUs, locations and channels as they are added and shown, and what is allowed of each by itself.

What it takes to know the others (a barcode that is taken, a component that is a bundle) is
`engine.catalogue`'s to say.
"""

from enum import IntEnum
from operator import itemgetter
from typing import Final, NamedTuple

from engine import currencies, limits

_SHOWN: Final = 40  # characters of a refused value that its message repeats


class Unit(IntEnum):
    """In what base units a SKU is counted."""

    EA = 0  # pieces
    G = 1  # grams
    ML = 2  # millilitres


_UNITS: Final = frozenset(int(unit) for unit in Unit)


class Component(NamedTuple):
    """So many base units of a SKU (by its id) are in one piece of a bundle."""

    sku: int
    quantity: int


class Sku(NamedTuple):
    """A SKU as it is added and shown. Two spellings of a GTIN (leading zeros) are one GTIN.

    One that has components is a bundle: it has no stock of its own, only theirs.
    """

    code: str
    unit: int = Unit.EA
    description: str = ""
    gtins: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()


class Rename(NamedTuple):
    """A SKU (by its id) gets a new code."""

    sku: int
    code: str


class Location(NamedTuple):
    """A location as it is added and shown; `currency` is the alphabetic code of ISO 4217."""

    code: str
    currency: str
    description: str = ""


class Channel(NamedTuple):
    """A channel with its rules: where it sells from, and what it may not sell there.

    `buffer`: so many base units of each cell are kept from it. `locations` are pairs (location id,
    its own buffer or None for the channel's), each location once; with `only_listed` it sells from
    no others.
    """

    code: str
    buffer: int = 0
    only_listed: bool = False
    locations: tuple[tuple[int, int | None], ...] = ()

    def in_order(self) -> "Channel":
        """The same rules, with the locations in order of id."""
        return self._replace(locations=tuple(sorted(self.locations, key=itemgetter(0))))


class InvalidEntry(ValueError):  # noqa: N818 - one of the refusals that the edge passes on
    """An entry of a request is malformed: which field it is, and what is wrong with it."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class CatalogueFull(ValueError):  # noqa: N818
    """There are no ids left."""


# ------------------------------------------------------------------------------ what is allowed --


def check_length(count: int, field: str) -> None:
    """Refuse a request of no entries, or of too many."""
    if not 1 <= count <= limits.MAX_CATALOG_ENTRIES:
        raise InvalidEntry(field, f"{count} entries, must be 1 to {limits.MAX_CATALOG_ENTRIES}")


def check_sku(entry: Sku, i: int, skus: int) -> None:
    """Refuse a SKU that is malformed, of which no more is known than that SKUs 1 to `skus` are."""
    code, unit, description, gtins, components = entry
    if not _is_code(code):
        raise _refused_code(code, f"skus[{i}].code")
    if unit not in _UNITS:
        raise InvalidEntry(f"skus[{i}].unit", f"{unit} is not a unit (0 EA, 1 G, 2 ML)")
    if description:
        _check_description(description, f"skus[{i}].description")
    if gtins:
        _check_gtins(gtins, f"skus[{i}].gtins")
    if components:
        _check_components(entry, i, skus)


def check_location(entry: Location, i: int) -> None:
    """Refuse a location that is malformed."""
    code, currency, description = entry
    if not _is_code(code):
        raise _refused_code(code, f"locations[{i}].code")
    if currency not in currencies.NUMBERS:
        shown = repr(currency[:_SHOWN])
        reason = f"{shown} is not an alphabetic code of ISO 4217, like 'USD'"
        raise InvalidEntry(f"locations[{i}].currency", reason)
    if description:
        _check_description(description, f"locations[{i}].description")


def check_channel(entry: Channel, known: int) -> None:
    """Refuse a channel that is malformed. Locations 1 to `known` are there.

    Ids that nothing has stand for names that nobody knows: they need not be one and the same.
    """
    code, buffer, _, locations = entry
    check_code(code, "channel.code")
    _check_buffer(buffer, "channel.buffer")
    if len(locations) > limits.MAX_CATALOG_ENTRIES:
        reason = f"{len(locations)} entries, must be at most {limits.MAX_CATALOG_ENTRIES}"
        raise InvalidEntry("channel.locations", reason)
    seen: set[int] = set()
    for i, (location, own) in enumerate(locations):
        if own is not None:
            _check_buffer(own, f"channel.locations[{i}].buffer")
        if location in seen and 1 <= location <= known:
            raise InvalidEntry(f"channel.locations[{i}].location", "is listed twice")
        seen.add(location)


def _check_buffer(buffer: int, field: str) -> None:
    if not 0 <= buffer <= limits.MAX_QUANTITY:
        raise InvalidEntry(field, f"{buffer}, must be 0 to {limits.MAX_QUANTITY} base units")


def _check_components(entry: Sku, i: int, skus: int) -> None:
    """Whether a bundle is one; as with a channel's locations, two unknown components may differ."""
    field, components = f"skus[{i}].components", entry.components
    if len(components) > limits.MAX_BUNDLE_COMPONENTS:
        reason = f"{len(components)}, must be at most {limits.MAX_BUNDLE_COMPONENTS}"
        raise InvalidEntry(field, reason)
    if entry.unit != Unit.EA:
        raise InvalidEntry(f"skus[{i}].unit", "a bundle is counted in pieces (EA)")
    seen: set[int] = set()
    for j, (sku, quantity) in enumerate(components):
        if not 1 <= quantity <= limits.MAX_QUANTITY:
            reason = f"{quantity}, must be 1 to {limits.MAX_QUANTITY} base units"
            raise InvalidEntry(f"{field}[{j}].quantity", reason)
        if sku in seen and 1 <= sku <= skus:
            raise InvalidEntry(f"{field}[{j}].sku", "is a component already")
        seen.add(sku)


def check_code(code: str, field: str) -> None:
    """Refuse a code that is malformed."""
    if not _is_code(code):
        raise _refused_code(code, field)


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

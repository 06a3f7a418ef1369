"""Reading CSV files of SKUs, locations or stock, with errors that name line and field.

The header tells what a file holds. All that a file says by itself is checked before anything is
returned; what must fit the catalogue is checked in `adapters.cli.fitting`. This module knows no network.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from engine import limits

MAX_ERRORS: Final = 10  # that are told of one file
UNITS: Final = ("EA", "G", "ML")


class FileKind(Enum):
    """What a file holds: its required columns, then those that may be missing."""

    SKUS = (("sku", "unit"), ("description", "gtins", "components"))
    LOCATIONS = (("location", "currency"), ("description",))
    STOCK = (("sku", "location", "quantity"), ("price_minor",))


class CsvInvalid(Exception):  # noqa: N818 - a condition of the file
    """A file that cannot be loaded; each line of `errors` names line and field."""

    def __init__(self, path: Path, errors: list[str]) -> None:
        more = len(errors) - MAX_ERRORS
        self.errors = errors[:MAX_ERRORS] + [f"{path}: and {more} more errors"] * (more > 0)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True, slots=True)
class CsvFile:
    """A checked file: `rows` as dicts of stripped text; a missing field is the empty string.

    `lines` are the rows' places in the file.
    """

    path: Path
    kind: FileKind
    rows: list[dict[str, str]]
    lines: list[int]

    def told(self, row: int, problem: str) -> str:
        """What is wrong with a row, with its place."""
        return f"{self.path}:{self.lines[row]}: {problem}"


def read_csv(path: Path) -> CsvFile:
    """Read and check a file. Raises CsvInvalid, OSError."""
    errors: list[str] = []
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    first: dict[str, int] = {}  # of each code that a catalogue gets, the line where it stands
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            kind = _kind(path, header)
            for number, fields in _filled(reader):
                if len(fields) != len(header):
                    text = f"{len(fields)} fields, the header has {len(header)}"
                    errors.append(f"{path}:{number}: {text}")
                    continue
                row = dict(zip(header, (each.strip() for each in fields), strict=True))
                rows.append(row)
                lines.append(number)
                errors += [f"{path}:{number}: {problem}" for problem in _problems(kind, row)]
                if kind is not FileKind.STOCK:
                    name = kind.value[0][0]
                    if first.setdefault(row[name], number) != number:
                        text = f"{row[name]!r} stands in line {first[row[name]]} already"
                        errors.append(f"{path}:{number}: {name}: {text}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise CsvInvalid(path, [f"{path}: not a CSV file in UTF-8: {error}"]) from error
    if not errors and not rows:
        errors.append(f"{path}:2: there is nothing after the header")
    if errors:
        raise CsvInvalid(path, errors)
    return CsvFile(path, kind, rows, lines)


def _filled(reader: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers in the file."""
    for fields in reader:
        if any(each.strip() for each in fields):
            yield getattr(reader, "line_num", 0), fields


def _kind(path: Path, header: list[str]) -> FileKind:
    for kind in (FileKind.STOCK, FileKind.SKUS, FileKind.LOCATIONS):
        required, optional = kind.value
        if set(required) <= set(header):
            unknown = [name for name in header if name not in required + optional]
            if unknown or len(set(header)) != len(header):
                what = f"unknown field {unknown[0]!r}" if unknown else "a field stands twice"
                raise CsvInvalid(
                    path, [f"{path}:1: {what}; known: {', '.join(required + optional)}"]
                )
            return kind
    wanted = "; or ".join(",".join(kind.value[0]) for kind in FileKind)
    other = next((each for each in ";\t|" if each in "".join(header)), "")
    separated = f", separated by commas, not by {other!r}" if other else ""
    raise CsvInvalid(path, [f"{path}:1: the header must have the fields {wanted}{separated}"])


def _problems(kind: FileKind, row: dict[str, str]) -> Iterator[str]:
    """What is wrong with a row, each naming its field."""
    for name, value in row.items():
        if value or name in kind.value[0]:
            problem = _CHECKS[name](value)
            if problem:
                yield f"{name}: {problem}, not {value!r}"


def _code(value: str) -> str:
    fits = 1 <= len(value) <= limits.MAX_CODE_LENGTH
    return "" if fits else f"must have 1 to {limits.MAX_CODE_LENGTH} characters"


def _unit(value: str) -> str:
    return "" if value in UNITS else f"must be one of {', '.join(UNITS)}"


def _currency(value: str) -> str:
    fits = len(value) == 3 and value.isascii() and value.isalpha() and value.isupper()
    return "" if fits else "must be an ISO 4217 code such as USD"


def _gtins(value: str) -> str:
    codes = value.split()
    least, most = limits.MIN_GTIN_DIGITS, limits.MAX_GTIN_DIGITS
    fits = all(each.isascii() and each.isdigit() and least <= len(each) <= most for each in codes)
    if fits and len(codes) <= limits.MAX_GTINS:
        return ""
    return f"must be at most {limits.MAX_GTINS} barcodes of {least} to {most} digits"


def _description(value: str) -> str:
    most = limits.MAX_DESCRIPTION
    return "" if len(value) <= most else f"must have at most {most} characters"


def _whole(least: int, most: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        is_whole = value.isascii() and value.isdigit() and len(value) <= 19
        fits = is_whole and least <= int(value) <= most
        return "" if fits else f"must be a whole number from {least} to {most}"

    return check


def _components(value: str) -> str:
    pairs = [each.rpartition(":") for each in value.split()]
    most = limits.MAX_BUNDLE_COMPONENTS
    if len(pairs) > most or not all(code for code, _, _ in pairs):
        return f"must be at most {most} of SKU:QUANTITY, with space between"
    return next(filter(None, (_units(units) for _, _, units in pairs)), "")


_units = _whole(1, limits.MAX_QUANTITY)
_CHECKS: Final[dict[str, Callable[[str], str]]] = {
    "sku": _code,
    "location": _code,
    "unit": _unit,
    "currency": _currency,
    "gtins": _gtins,
    "components": _components,
    "description": _description,
    "quantity": _whole(0, limits.MAX_QUANTITY),
    "price_minor": _whole(0, limits.MAX_PRICE_MINOR),
}

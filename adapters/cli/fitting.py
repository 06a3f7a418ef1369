"""Whether a file fits the catalogue: all of it is checked before anything is sent.

The gateway's catalogue is fetched and what the file would add is planned on it, by the rules that the
gateway has itself (`engine.catalogue`). So whatever it would refuse is told with its line in the file.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from adapters import client
from adapters.cli.csvfile import CsvFile, FileKind
from engine import limits
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock
from engine.entries import CatalogueFull, Component, InvalidEntry, Location, Rename, Sku, Unit

ROWS_AT_ONCE: Final = 4_000  # of a request; a row of stock with a price makes two lines

_Entry = TypeVar("_Entry", Sku, Location)
_ENTRY: Final = re.compile(r"(?:skus|locations)\[(\d+)\]\.(\w+)(.*)")
# A field of an entry of the catalogue, where the file calls it otherwise.
_COLUMNS: Final = {FileKind.SKUS: {"code": "sku"}, FileKind.LOCATIONS: {"code": "location"}}
_NO_SUCH_SKU: Final = 0


def copy_of(skus: Iterable[client.Sku], locations: Iterable[client.Location]) -> Catalogue:
    """The catalogue that a gateway tells, in order of id, with the codes that SKUs had before."""
    copy, renames = Catalogue(), list[Rename]()

    def entry(sku: client.Sku) -> Sku:
        parts = tuple(Component(int(part), units) for part, units in sku.components)
        codes = (*sku.old_codes, sku.code)
        renames.extend(Rename(sku.id, code) for code in codes[1:])
        return Sku(codes[0], Unit[sku.unit], "", sku.gtins, parts)

    told = map(entry, skus)
    while some := list(islice(told, ROWS_AT_ONCE)):
        # What a bundle is made of is in the catalogue before it, maybe in the same answer.
        for alone in _apart(some):
            _add(copy, skus=alone)
    for rename in renames:
        copy.codes.rename(rename)
    _add(copy, locations=[Location(each.code, each.currency) for each in locations])
    return copy


def parts_of(file: CsvFile) -> list[list[int]]:
    """The rows of a file as they are sent, a request a part: bundles after their components.

    An entry of the catalogue may be long, and what is too long for one request is not read at all.
    """
    groups: list[list[int]] = [[], []]
    for number, row in enumerate(file.rows):
        groups[bool(row.get("components"))].append(number)
    parts: list[list[int]] = []
    for rows in groups:
        nbytes = limits.MAX_CATALOG_BYTES + 1  # no room in what is there
        for number in rows:
            own = _most_bytes(file.rows[number])
            if nbytes + own > limits.MAX_CATALOG_BYTES or len(parts[-1]) == ROWS_AT_ONCE:
                parts.append([])
                nbytes = 0
            parts[-1].append(number)
            nbytes += own
    return parts


def sku_of(row: dict[str, str]) -> client.Sku:
    """A row as it is sent."""
    gtins, components = tuple(row.get("gtins", "").split()), components_of(row)
    description = row.get("description", "")
    return client.Sku(row["sku"], row["unit"], description, gtins, components=components)


def location_of(row: dict[str, str]) -> client.Location:
    """A row as it is sent."""
    return client.Location(row["location"], row["currency"], row.get("description", ""))


def _most_bytes(row: dict[str, str]) -> int:
    """What a row takes in a request, at most: its texts, and what stands before each of them."""
    texts = sum(len(text.encode()) for text in row.values())
    gtins, components = (len(row.get(name, "").split()) for name in ("gtins", "components"))
    return texts + 4 * (1 + len(row)) + 2 * gtins + 20 * components


def faults_of_skus(file: CsvFile, catalogue: Catalogue) -> list[str]:
    """What the catalogue would refuse of SKUs; it is as if the others were added then."""
    return _faults(
        file,
        lambda row: _sku(file.rows[row], catalogue),
        catalogue.plan_skus,
        lambda new: _add(catalogue, skus=new),
    )


def faults_of_locations(file: CsvFile, catalogue: Catalogue) -> list[str]:
    """What the catalogue would refuse of locations; it is as if the others were added then."""
    return _faults(
        file,
        lambda row: Location(file.rows[row]["location"], file.rows[row]["currency"]),
        catalogue.plan_locations,
        lambda new: _add(catalogue, locations=new),
    )


def faults_of_stock(file: CsvFile, catalogue: Catalogue) -> list[str]:
    """What stock names that is not in the catalogue, or is a bundle, which has none of its own."""
    faults: list[str] = []
    for number, row in enumerate(file.rows):
        sku = catalogue.sku_id(row["sku"])
        if not sku:
            faults.append(file.told(number, f"sku: not in the catalogue: {row['sku']!r}"))
        elif catalogue.components(sku) and int(row["quantity"]):
            what = "is a bundle, which has no stock of its own"
            faults.append(file.told(number, f"quantity: {row['sku']!r} {what}"))
        if not catalogue.location_id(row["location"]):
            faults.append(file.told(number, f"location: not in the catalogue: {row['location']!r}"))
    return faults


def told_by_line(file: CsvFile, rows: Sequence[int], field: str, description: str) -> str:
    """What is wrong with one of the rows, by the field of a request that has them as its entries."""
    found = _ENTRY.match(field)
    if found is None:
        return f"{file.path}: {field}: {description}"
    number, name, within = found.groups()
    column = _COLUMNS[file.kind].get(name, name)
    return file.told(rows[int(number)], f"{column}{within}: {description}")


def _faults(
    file: CsvFile,
    made: Callable[[int], _Entry],
    plan: Callable[[Sequence[_Entry]], tuple[list[int], list[_Entry]]],
    add: Callable[[list[_Entry]], None],
) -> list[str]:
    """Plan rows and add them to a copy of the catalogue; what is refused is told, and left out."""
    faults: list[str] = []
    for part in parts_of(file):
        rows = part
        while rows:
            some = [made(row) for row in rows]
            left_out = 0
            try:
                _, new = plan(some)
            except InvalidEntry as error:
                faults.append(told_by_line(file, rows, error.field, error.description))
                found = _ENTRY.match(error.field)
                assert found is not None, "one of these entries is to blame"
                some, left_out = some[: int(found[1])], 1
                new = plan(some)[1] if some else []
            except CatalogueFull as error:
                return [*faults, f"{file.path}: {error}"]
            add(new)
            rows = rows[len(some) + left_out :]
    return faults


def _sku(row: dict[str, str], catalogue: Catalogue) -> Sku:
    components = components_of(row)
    parts = tuple(Component(catalogue.sku_id(code), units) for code, units in components)
    gtins, unit = tuple(row.get("gtins", "").split()), Unit[row["unit"]]
    return Sku(row["sku"], unit, row.get("description", ""), gtins, parts)


def components_of(row: dict[str, str]) -> tuple[tuple[str, int], ...]:
    """What a bundle is made of, which a file says as `SKU:QUANTITY` with space between."""
    pairs = (each.rpartition(":") for each in row.get("components", "").split())
    return tuple((code, int(units)) for code, _, units in pairs)


def _apart(entries: list[Sku]) -> list[list[Sku]]:
    """Entries in groups, each bundle in a group of its own with what follows it."""
    groups = list[list[Sku]]([[]])
    for entry in entries:
        if entry.components:
            groups.append([])
        groups[-1].append(entry)
    return [group for group in groups if group]


def _add(catalogue: Catalogue, **new: Any) -> None:
    known = catalogue.skus, catalogue.locations
    catalogue.apply(CatalogueBlock(1, 1, 0, *known, **new))

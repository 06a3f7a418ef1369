"""The catalogue: codes of SKUs, locations and channels to dense ids, and back.

Ids are given in order from 1 and never change or come back, so an id is also an index. What exists
is never altered, but for the rules of channels and the codes of SKUs: changes are planned
against the catalogue (which finds what is malformed and what is new), journaled as a block
(`engine.catalogue_block`), and only then applied.

This module knows nothing of who owns the stream or of which shard owns a location.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine import currencies, limits
from engine.catalogue_block import CatalogueBlock
from engine.changes import ChangeMemory
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
from engine.framing import BlockDamaged


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
            check_sku(entry, i, self.skus)
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

    def apply(self, block: CatalogueBlock) -> None:
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

    def _check_fits(self, block: CatalogueBlock) -> None:
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

    def _new_gtins(self, block: CatalogueBlock) -> dict[int, int]:
        """The owners of the GTINs that a block adds; BlockDamaged when one has an owner."""
        owners = {
            int(g): i for i, entry in enumerate(block.skus, self.skus + 1) for g in entry.gtins
        }
        is_each_once = len(owners) == sum(len(entry.gtins) for entry in block.skus)
        if not (is_each_once and self._gtin_owners.keys().isdisjoint(owners)):
            raise BlockDamaged("it gives a GTIN away that another SKU has")
        return owners

    def _add_bundles(self, block: CatalogueBlock) -> None:
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

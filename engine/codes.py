"""The codes of SKUs: which SKU a code means, and which codes a SKU has had.

A SKU keeps its id for good, and may get a new code. The code that it had stays known: it means the
same SKU, on old orders, receipts and price files, and no other SKU ever gets it. This module knows
nothing else of a SKU.
"""

from collections.abc import Sequence

from engine import limits
from engine.entries import InvalidEntry, Rename, check_code


class SkuCodes:
    """Codes to dense ids from 1 on, and back to the code in force."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}  # of codes in force and of old ones
        self._codes = [""]  # index 0 is nobody, so that an id is an index
        self._old: dict[int, tuple[str, ...]] = {}  # oldest first
        self.renames = 0  # so many times a SKU has got a new code

    def __len__(self) -> int:
        """How many SKUs there are, which is the highest id."""
        return len(self._codes) - 1

    def find(self, code: str) -> int:
        """The id of the SKU that has or had a code; 0: none."""
        return self._ids.get(code, 0)

    def code(self, sku_id: int) -> str:
        """The code in force. The id must be one that was given."""
        return self._codes[sku_id]

    def old(self, sku_id: int) -> tuple[str, ...]:
        """The codes that a SKU had before, oldest first."""
        return self._old.get(sku_id, ())

    def are_new(self, codes: Sequence[str]) -> bool:
        """Whether no SKU has or had any of these, and none stands twice."""
        return len(set(codes)) == len(codes) and self._ids.keys().isdisjoint(codes)

    def add(self, codes: Sequence[str]) -> None:
        """Give the next ids to codes, which are new."""
        self._ids.update(zip(codes, range(len(self) + 1, 1 << 32), strict=False))
        self._codes += codes

    def plan(self, entry: Rename) -> Rename | None:
        """What to rename; None: the SKU has this code already. Changes nothing.

        A code that the SKU had before may come back. Raises InvalidEntry when there is no such SKU,
        the code is malformed or another SKU's, or no more old codes are kept.
        """
        sku_id, code = entry
        if not 1 <= sku_id <= len(self):
            raise InvalidEntry("sku", "is not in the catalogue")
        check_code(code, "code")
        owner, current = self.find(code), self._codes[sku_id]
        if owner == sku_id:
            return None if code == current else entry
        if owner:
            theirs = self._codes[owner]
            of = "the code" if code == theirs else "an old code, which stays known,"
            raise InvalidEntry("code", f"{code!r} is {of} of SKU {owner}: {theirs!r}")
        if len(self.old(sku_id)) >= limits.MAX_OLD_CODES:
            reason = f"{current!r} has {limits.MAX_OLD_CODES} old codes, which is the most"
            raise InvalidEntry("code", f"{reason}; it can get one of them back")
        return entry

    def rename(self, entry: Rename) -> None:
        """Do what was planned."""
        sku_id, code = entry
        kept = (old for old in (*self.old(sku_id), self._codes[sku_id]) if old != code)
        self._old[sku_id] = tuple(kept)
        self._codes[sku_id] = code
        self._ids[code] = sku_id
        self.renames += 1

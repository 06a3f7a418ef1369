"""What a shard learns of the catalogue: its machine knows it at once, its next block says so.

Replay knows nothing else of the catalogue, so nothing may be judged by what no block has told. This
room must not know who reads the catalogue, nor how.
"""

from collections.abc import Iterable
from typing import Protocol

from engine import limits
from engine.block import Place
from engine.machine import Machine


class CatalogueView(Protocol):
    """What a shard needs to know of the catalogue and the shard map."""

    async def refresh(self) -> None:
        """Learn what is new."""

    @property
    def sku_limit(self) -> int:
        """Tell the highest SKU id."""

    @property
    def rules(self) -> int:
        """Tell the version of the channels' rules: with another one, any location may be changed."""

    def places(self, known: int) -> Iterable[Place]:
        """Tell the locations with ids above `known`, in order of id."""


class Learner:
    """Brings a machine up to its catalogue, no more at a time than one block may hold."""

    def __init__(self, catalogue: CatalogueView, machine: Machine) -> None:
        self._catalogue = catalogue
        self._machine = machine
        self.unjournaled: list[Place] = []  # what the machine learnt since the last block
        self._rules = -1  # the version of the channels' rules by which locations were looked at,
        self._looked_at = 0  # up to this one

    def learn(self) -> bool:
        """Let the machine learn what is new; the next block must tell `unjournaled`.

        False when there is more of it than one block may hold.
        """
        catalogue, machine = self._catalogue, self._machine
        if catalogue.sku_limit > machine.sku_limit:
            machine.set_sku_limit(catalogue.sku_limit)
        if catalogue.rules != self._rules:
            self._rules, self._looked_at = catalogue.rules, 0
        for place in catalogue.places(self._looked_at):
            if len(self.unjournaled) >= limits.MAX_BLOCK_PLACES:
                return False
            self._looked_at = place.location
            if machine.places.get(place.location) != place:
                machine.set_place(place)
                self.unjournaled.append(place)
        return True

"""Who has subscribed, found by what they want: of state as of events.

What a subscriber is told, and when, is the business of the hubs (`actors.hub`, `actors.events`).
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from actors.tokens import Filter

Places = tuple[tuple[int, int, int], ...]
"""(shard, epoch, seq) of each shard, in order of shard."""


class HubFull(Exception):  # noqa: N818 - a condition, not an error of the caller
    """There are as many subscribers as there may be."""


class HubStopped(Exception):  # noqa: N818
    """The hub is stopping; the subscription has been told all that there was."""


class NotReady(Exception):  # noqa: N818
    """A mirror has not been loaded yet, so there is nothing to begin with."""


class Subscriber(Protocol):
    """What is known of a subscription here."""

    filter: Filter


S = TypeVar("S", bound=Subscriber)


class Subscribers(Generic[S]):
    """Subscriptions, each once, by what leads to them first: locations, else SKUs, else nothing."""

    def __init__(self) -> None:
        self.by_location: dict[int, set[S]] = {}
        self.by_sku: dict[int, set[S]] = {}
        self.of_all: set[S] = set()  # who name neither
        self._known: set[S] = set()

    def add(self, subscription: S) -> None:
        """Enter a subscription."""
        self._known.add(subscription)
        index, ids = self._index_of(subscription.filter)
        for number in ids:
            index.setdefault(number, set()).add(subscription)
        if not ids:
            self.of_all.add(subscription)

    def discard(self, subscription: S) -> None:
        """Forget a subscription; twice is as good as once."""
        self._known.discard(subscription)
        self.of_all.discard(subscription)
        index, ids = self._index_of(subscription.filter)
        for number in ids:
            members = index.get(number, set())
            members.discard(subscription)
            if not members:
                index.pop(number, None)

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[S]:
        return iter(self._known)

    def _index_of(self, wanted: Filter) -> tuple[dict[int, set[S]], list[int]]:
        if wanted.locations is not None:
            return self.by_location, wanted.locations.tolist()
        if wanted.skus is not None:
            return self.by_sku, wanted.skus.tolist()
        return {}, []

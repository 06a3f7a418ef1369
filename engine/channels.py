"""Channels: codes and dense numbers, and what each of them may sell of a location's cells.

A channel's number never changes or comes back; its rules do, and `version` then grows. This module
knows of locations only that they have ids from 1.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine import limits
from engine.block import NOT_SOLD
from engine.entries import CatalogueFull, Channel, InvalidEntry, check_channel

NO_SUCH_CHANNEL: Final = 0xFFFF  # of no channel; 0 is "no channel", which has no rules
assert NO_SUCH_CHANNEL >= limits.MAX_CHANNELS


class Channels:
    """Every channel, by code and by number, with the rules of each."""

    def __init__(self) -> None:
        # Index 0 is no channel, so that a number is an index.
        self._numbers: dict[str, int] = {}
        self._entries = [Channel("")]
        self._listed: list[dict[int, int]] = [{}]  # of each: a listed location's buffer
        self._version = 0

    def __len__(self) -> int:
        return len(self._entries) - 1

    @property
    def version(self) -> int:
        """Grows with every change of a rule."""
        return self._version

    def number(self, code: str) -> int:
        """The number of a channel's code; 0 for no code, NO_SUCH_CHANNEL for an unknown one."""
        return self._numbers.get(code, NO_SUCH_CHANNEL) if code else 0

    def channel(self, number: int) -> Channel:
        """Show a channel. KeyError when there is no such number."""
        if not 0 < number < len(self._entries):
            raise KeyError(number)
        return self._entries[number]

    def buffer(self, number: int, location: int) -> int | None:
        """What is kept of each cell of a location from a channel; None: it does not sell there.

        KeyError when there is no such channel.
        """
        entry = self.channel(number)
        buffer = self._listed[number].get(location)
        if buffer is None and not entry.only_listed:
            return entry.buffer
        return buffer

    def buffers(self, location: int) -> tuple[int, ...]:
        """What is kept of each cell of a location, by channel: `buffers` of `engine.block.Place`."""
        if len(self._entries) == 1:
            return ()
        return tuple(
            listed.get(location, NOT_SOLD if entry.only_listed else entry.buffer)
            for entry, listed in zip(self._entries, self._listed, strict=True)
        )

    def buffer_column(self, number: int, locations: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is kept at each of some locations (n,) from a channel, or NOT_SOLD."""
        entry, listed = self.channel(number), self._listed[number]
        column = np.full(len(locations), NOT_SOLD if entry.only_listed else entry.buffer, np.int64)
        places, where = np.unique(locations, return_inverse=True)
        for i, place in enumerate(places.tolist()):
            if place in listed:
                column[where == i] = listed[place]
        return column

    def plan(self, entry: Channel, locations: int) -> tuple[int, Channel | None]:
        """The number that a channel has or will have, and what to set; None: it is so already.

        There are locations 1 to `locations`. Raises InvalidEntry and CatalogueFull.
        """
        check_channel(entry, locations)
        for i, (location, _) in enumerate(entry.locations):
            if not 1 <= location <= locations:
                raise InvalidEntry(f"channel.locations[{i}].location", "is not in the catalogue")
        number = self._numbers.get(entry.code, len(self._entries))
        if number == limits.MAX_CHANNELS:
            raise CatalogueFull(f"{limits.MAX_CHANNELS - 1} channels is the most")
        entry = entry.in_order()
        is_so = number < len(self._entries) and self._entries[number] == entry
        return number, None if is_so else entry

    def set(self, entry: Channel) -> None:
        """Give a channel, as it was planned, its rules, and its number if it is new."""
        number = self._numbers.setdefault(entry.code, len(self._entries))
        if number == len(self._entries):
            self._entries.append(entry)
            self._listed.append({})
        self._entries[number] = entry
        self._listed[number] = {
            location: entry.buffer if own is None else own for location, own in entry.locations
        }
        self._version += 1

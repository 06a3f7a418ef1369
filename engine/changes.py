"""What changes of the catalogue were asked for by which op_id, so that none is made twice.

An addition needs no such memory: a code that exists keeps its id and its data. A new code of a SKU
and new rules of a channel do: between two attempts at the same change somebody else may have made a
newer one, which the second attempt must not undo. What is known follows from the catalogue's stream
alone, so whoever has read it can answer.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import Final, NamedTuple

import msgpack

from engine import limits
from engine.entries import Channel, InvalidEntry, Rename

_DIGEST_BYTES: Final = 8
_REUSED: Final = "was used by a request with other content"


class Asked(NamedTuple):
    """A request for a change: its op_id, and the digest of what it asked for."""

    op_id: bytes
    digest: bytes


def asked_for(op_id: bytes, entry: Rename | Channel) -> Asked:
    """What is remembered of a request. Locations of a channel may be listed in any order."""
    if isinstance(entry, Channel):
        entry = entry.in_order()
    content = msgpack.packb([type(entry).__name__, entry])
    return Asked(op_id, blake2b(content, digest_size=_DIGEST_BYTES).digest())


class ChangeMemory:
    """The last `most` requests for changes, and whether they changed anything."""

    def __init__(self, most: int = limits.REMEMBERED_CHANGES) -> None:
        self._most = most
        self._known: OrderedDict[bytes, tuple[bytes, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, asked: Asked) -> bool | None:
        """Whether a request that was answered before changed anything; None: it is new.

        InvalidEntry when its op_id came with another content.
        """
        digest, changed = self._known.get(asked.op_id, (asked.digest, None))
        if digest != asked.digest:
            raise InvalidEntry("op_id", _REUSED)
        return changed

    def remember(self, asked: Asked, *, changed: bool) -> None:
        """Keep what a request was answered; the oldest one is forgotten when there are too many."""
        self._known[asked.op_id] = asked.digest, changed
        if len(self._known) > self._most:
            self._known.popitem(last=False)

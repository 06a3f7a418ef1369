"""What many clients do at once on a few cells, so that they collide: orders, tills, batches, reads.

Calls are drawn at random. Holds are everybody's: whoever likes commits or releases a recent one, also
one whose reserve was never answered, and many run out first.
"""

import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from adapters.client.ids import new_batch_id, new_op_id
from engine.operations import Disposition, Kind
from tests.linear import convert
from tests.linear.history import Call, Key
from tests.linear.record import Request

RECENT: Final = 12  # holds that calls are about
TTLS_MS: Final = (2, 10, 40, 150, 600, 60_000)
BATCH_LINES: Final = 10


class Traffic:
    """Draws calls. The first two cells also stand in orders together; the others stand alone."""

    def __init__(self, cells: Sequence[Key], rng: random.Random) -> None:
        self.cells = list(cells)
        self._rng = rng
        self._holds: deque[tuple[bytes, tuple[Key, ...]]] = deque(maxlen=RECENT)

    def request(self) -> Request:
        """One unary call, or a batch."""
        rng = self._rng
        if rng.random() < 0.15:
            op_id = new_batch_id()
            calls = convert.named(op_id, self._batch())
            request = Request(op_id, calls, batch=True, want_available=rng.random() < 0.7)
        else:
            op_id = new_op_id()
            request = Request(op_id, convert.named(op_id, self._unary()))
        self._holds += [
            (call.hold, tuple(key for key, _ in call.lines))
            for call in request.calls
            if call.kind == Kind.RESERVE
        ]
        return request

    def hold(self) -> bytes | None:
        """One of the recent holds; None before there is any."""
        return self._rng.choice(self._holds)[0] if self._holds else None

    def _unary(self) -> list[Call]:
        draw = self._rng.random()
        if draw < 0.4 or not self._holds:
            return [self._reserve()]
        if draw < 0.75:
            return [self._on_hold()]
        kind = self._fact_kind()
        return [self._fact(kind) for _ in range(self._rng.choice((1, 1, 2)))]

    def _batch(self) -> list[Call]:
        calls = []
        for _ in range(self._rng.randint(2, BATCH_LINES)):
            draw = self._rng.random()
            if draw < 0.4 or not self._holds:
                calls.append(self._reserve())
            else:
                calls.append(self._on_hold() if draw < 0.6 else self._fact(self._fact_kind()))
        return calls

    def _reserve(self) -> Call:
        rng = self._rng
        keys = self.cells[:2] if rng.random() < 0.2 else [rng.choice(self.cells)]
        if rng.random() < 0.5:
            keys.reverse()
        lines = tuple((key, rng.randint(1, 3)) for key in keys)
        return Call(Kind.RESERVE, lines, value=rng.choice(TTLS_MS))

    def _on_hold(self) -> Call:
        rng = self._rng
        hold_id, keys = rng.choice(self._holds)
        kind = rng.choice((Kind.COMMIT, Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL))
        if rng.random() < 0.7:
            return Call(kind, hold=hold_id)
        rest = kind == Kind.COMMIT and rng.random() < 0.5
        return Call(kind, ((rng.choice(keys), rng.randint(1, 2)),), hold_id, release_rest=rest)

    def _fact_kind(self) -> Kind:
        kinds = (
            Kind.SALE,
            Kind.SALE,
            Kind.RECEIVE,
            Kind.RETURN,
            Kind.ADJUST,
            Kind.SET_SAFETY_STOCK,
        )
        # A count forgives whatever was wrong before it, so there are few.
        return Kind.COUNT if self._rng.random() < 0.03 else self._rng.choice(kinds)

    def _fact(self, kind: Kind) -> Call:
        rng = self._rng
        key, units, value = rng.choice(self.cells), rng.randint(1, 4), 0
        if kind == Kind.ADJUST:
            units *= rng.choice((1, -1))
        elif kind == Kind.COUNT:
            units *= 5
        elif kind == Kind.SET_SAFETY_STOCK:
            units -= 1
        elif kind == Kind.RETURN:
            value = int(rng.choice((*Disposition, Disposition.RESTOCK)))
        return Call(kind, ((key, units),), value=value)

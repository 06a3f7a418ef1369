"""What many clients do at once on a few cells, so that they collide: orders, tills, batches, transfers.

Calls are drawn at random. Holds, records and transfers are everybody's: whoever likes commits or moves
a recent one, also one whose making was never answered, and many holds run out first.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from adapters.client.ids import new_batch_id, new_op_id
from engine.operations import HANDOVER_KINDS, PART_KINDS, Disposition, Flag, Kind
from tests.linear import convert
from tests.linear.history import ARRIVE, HAND_OVER, LOOK_UP_INCOMING, LOSE, SHIP, Call, Key
from tests.linear.record import Request, Told, Way
from tests.linear.state import NS_PER_MS
from tests.linear.transfers import record_id

RECENT: Final = 9  # holds, sales, records and transfers that calls are about
TTLS_MS: Final = (2, 10, 40, 150, 600, 3_000, 60_000)
LATE_MS: Final = (1, 10, 60, 200)  # how long ago facts happened that are told late
BATCH_LINES: Final = 8
OF_HOLDS: Final = (
    *PART_KINDS,
    Kind.COMMIT,
    Kind.COMMIT,
    Kind.EXTEND,
    Kind.EXTEND,
    Kind.MOVE,
    Kind.MOVE,
    Kind.MOVE,
)
OF_ORDERS: Final = (Kind.FULFIL, Kind.FULFIL, Kind.CANCEL, Kind.UNFULFIL)

_T = TypeVar("_T")


@dataclass(slots=True)
class Named:
    """A hold, a sale, a record or a transfer, and the cells where some of it may be."""

    id: bytes
    cells: list[Key]


@dataclass(slots=True)
class Transfer:
    """A transfer, and whether it is shipped in one: then it has one record."""

    id: bytes
    lines: tuple[tuple[Key, int], ...]
    to: int
    in_one: bool


class Traffic:
    """Draws calls.

    The last cell stands alone, and no hold has it with others; each of the other SKUs is at each of
    their locations, and goes from one to another.
    """

    def __init__(self, cells: Sequence[Key], rng: random.Random) -> None:
        self.cells = list(cells)
        self._joined = self.cells[:-1]
        self._places = sorted({at for _, at in self._joined})
        self._rng = rng
        self._holds: deque[Named] = deque(maxlen=RECENT)
        self._orders: deque[Named] = deque(maxlen=RECENT)  # holds of which something was committed
        # Holds of several SKUs at one place, as of a bundle, that no linked move was refused of yet.
        self._together: deque[Named] = deque(maxlen=RECENT // 2)
        self._sales: deque[Named] = deque(maxlen=RECENT)
        self._records: deque[Named] = deque(maxlen=RECENT // 2)
        self._transfers: deque[Transfer] = deque(maxlen=RECENT // 2)
        self._receipts = 0

    def request(self) -> Request:
        """One call about stock, a batch, or a call about a transfer."""
        draw = self._rng.random()
        if draw < 0.15:
            return self._batch()
        return self._of_transfer() if draw < 0.29 else self._single()

    def hold(self) -> bytes:
        """The id of a recent hold, sale or transfer, or of none."""
        ids = [each.id for each in (*self._holds, *self._orders, *self._sales, *self._transfers)]
        return self._rng.choice(ids or [new_op_id()])

    def record(self) -> Call:
        """A look at a recent record, or at none."""
        rng = self._rng
        looks = [Call(LOOK_UP_INCOMING, hold=each.id) for each in self._records]
        looks += [
            Call(LOOK_UP_INCOMING, hold=record_id(each.id, rng.randrange(2)), other=each.id)
            for each in self._transfers
        ]
        return rng.choice(looks or [Call(LOOK_UP_INCOMING, hold=new_op_id())])

    def hear(self, told: Sequence[Told]) -> None:
        """Learn which holds were made, or became orders, and which holds and transfers were not."""
        for call, is_done in told:
            named = [each for each in self._holds if each.id == call.hold]
            if is_done and (call.kind == Kind.COMMIT or call.flags & Flag.COMMIT_NOW):
                self._orders += named
            elif is_done and call.kind == Kind.RESERVE and _is_together(call):
                self._together.append(Named(call.hold, [key for key, _ in call.lines]))
            elif not is_done and call.kind == Kind.MOVE and len(call.lines) > 1:
                for hold in [each for each in self._together if each.id == call.hold]:
                    self._together.remove(hold)
            if not is_done and call.kind in (Kind.RESERVE, Kind.ADD_LINE):
                for hold in named:
                    self._holds.remove(hold)
                for transfer in [each for each in self._transfers if each.id == call.hold]:
                    self._transfers.remove(transfer)

    # --- requests ---------------------------------------------------------------------------------

    def _single(self) -> Request:
        rng, op_id = self._rng, new_op_id()
        calls = self._calls()
        at = rng.choice(self._places) if rng.random() < 0.7 else 0
        return self._remembered(Request(op_id, convert.named(op_id, calls), at=at))

    def _batch(self) -> Request:
        """A batch of calls, some kinds of which are sent in no other way."""
        rng, op_id = self._rng, new_batch_id()
        calls: list[Call] = []
        for _ in range(rng.randint(2, BATCH_LINES)):
            draw = rng.random()
            if draw < 0.1:
                calls.append(self._add_line())
            elif draw < 0.18:
                calls.append(self._claim())
            elif draw < 0.26 and len(self._holds) > 1:
                calls.append(self._hand_over())
            elif draw < 0.38 and self._together:
                calls += self._linked_move()
            elif draw < 0.42:
                key = self._joined[0]
                first, second = (self._return(Kind.RETURN, key) for _ in range(2))
                calls.append(second._replace(returns=(first,)))
            else:
                calls += self._calls()
        told = rng.random() < 0.8
        return self._remembered(
            Request(op_id, convert.named(op_id, calls), Way.BATCH, want_available=told)
        )

    def _remembered(self, request: Request) -> Request:
        """Let others know what a request makes."""
        for call in request.calls:
            held = [each for each in self._holds if each.id == call.hold]
            if call.kind in (Kind.RESERVE, Kind.ADD_LINE) and not held:
                self._holds.append(Named(call.hold, [key for key, _ in call.lines]))
            if call.kind == HAND_OVER and call.other not in [each.id for each in self._holds]:
                self._holds.append(Named(call.other, call.cells))
            for hold in held if call.kind == Kind.MOVE else ():
                hold.cells += [(sku, call.lines[0][0][1]) for sku, _ in hold.cells[:2]]
            if call.kind == Kind.SALE and call.hold:
                self._sales.append(Named(call.hold, call.cells))
            if call.kind == Kind.EXPECT:
                known = [each for each in self._records if each.id == call.hold]
                if known:
                    known[0].cells += call.cells
                else:
                    self._records.append(Named(call.hold, call.cells))
        return request

    def _calls(self) -> list[Call]:
        """Calls of one kind, as they may stand in a single call."""
        draw = self._rng.random()
        if draw < 0.32:
            return [self._order()]
        if draw < 0.68 and self._holds:
            return self._on_hold()
        if draw < 0.78:
            return self._incoming()
        kind = self._fact_kind()
        # Counts are told late more often than not: it takes a while to count a shelf.
        moment = self._moment(0.7 if kind == Kind.COUNT else 0.3)
        is_named = self._rng.random() < 0.5
        return [
            self._fact(kind, moment, is_named=is_named) for _ in range(self._rng.choice((1, 1, 2)))
        ]

    # --- holds ------------------------------------------------------------------------------------

    def _order(self) -> Call:
        rng = self._rng
        keys = rng.sample(self._joined, 2) if rng.random() < 0.25 else [rng.choice(self.cells)]
        ttls_ms = TTLS_MS
        if len(keys) > 1 and rng.random() < 0.7:
            # As the components of a bundle are; and to be moved together, it must live a while.
            keys = [(sku, keys[0][1]) for sku in sorted({sku for sku, _ in self._joined})]
            ttls_ms = TTLS_MS[-3:]
        call = Call(
            Kind.RESERVE,
            tuple((key, rng.randint(1, 3)) for key in keys),
            value=rng.choice(ttls_ms),
            flags=int(rng.choice((0, 0, 0, Flag.PARTIAL, Flag.COMMIT_NOW))),
        )
        # What an order replaces, or is given in exchange for, is of its own part of the cells.
        alike = self._alike(self._holds, keys[0])
        draw = rng.random()
        if draw < 0.2 and alike:
            return call._replace(flags=call.flags | Flag.SUPERSEDE, other=rng.choice(alike).id)
        if draw < 0.3:
            returns = tuple(self._return(Kind.RETURN, keys[0]) for _ in range(rng.randint(1, 2)))
            now = call.flags & Flag.COMMIT_NOW
            moment = self._moment()
            dated = tuple(each._replace(occurred_at_ns=moment) for each in returns)
            return call._replace(flags=now, returns=dated, occurred_at_ns=moment)
        return call

    def _alike(self, named: Sequence[Named], key: Key) -> list[Named]:
        is_alone = key == self.cells[-1]
        return [each for each in named if (self.cells[-1] in each.cells) == is_alone]

    def _on_hold(self) -> list[Call]:
        rng = self._rng
        is_order = bool(self._orders) and rng.random() < 0.4
        hold = rng.choice(self._orders if is_order else self._holds)
        kind = rng.choice(OF_ORDERS if is_order else OF_HOLDS)
        if kind == Kind.EXTEND:
            return [Call(kind, hold=hold.id, value=rng.choice(TTLS_MS))]
        if kind == Kind.MOVE:
            return self._move(hold)
        call = Call(kind, hold=hold.id)
        if kind in HANDOVER_KINDS:
            call = call._replace(occurred_at_ns=self._moment())
        if rng.random() < 0.5:
            again = kind == Kind.COMMIT and rng.random() < 0.5
            return [call._replace(flags=int(Flag.RE_RESERVE) if again else 0)]
        keys = rng.sample(hold.cells, min(len(hold.cells), rng.choice((1, 1, 2))))
        rest = kind == Kind.COMMIT and rng.random() < 0.5
        lines = tuple((key, rng.randint(1, 2)) for key in keys)
        return [call._replace(lines=lines, flags=int(Flag.RELEASE_REST) if rest else 0)]

    def _move(self, hold: Named) -> list[Call]:
        """The hold goes to one of the places: all of it, or some of its cells."""
        rng = self._rng
        to = rng.choice(self._places)
        if self.cells[-1] in hold.cells:
            to = self.cells[-1][1]  # it has no other place, but one may ask
        if rng.random() < 0.35:
            return [Call(Kind.MOVE, (((0, to), 0),), hold.id)]
        cells = rng.sample(sorted(set(hold.cells)), rng.randint(1, len(set(hold.cells))))
        return [
            Call(Kind.MOVE, (((sku, to), rng.randint(0, 2)),), hold.id, value=at)
            for sku, at in cells
        ]

    def _linked_move(self) -> list[Call]:
        """One unit of each SKU that a hold has at one place goes to another one, or none does.

        More often than not, goods that arrive there just before.
        """
        rng = self._rng
        hold = rng.choice(self._together)
        to = rng.choice([at for at in self._places if at != hold.cells[0][1]])
        there = [(sku, to) for sku, _ in hold.cells]
        arrive = [Call(Kind.RECEIVE, ((key, rng.randint(1, 3)),)) for key in there]
        move = Call(Kind.MOVE, tuple((key, 1) for key in there), hold.id)
        return [*arrive, move] if rng.random() < 0.7 else [move]

    def _add_line(self) -> Call:
        rng = self._rng
        key = rng.choice(self.cells)
        alike = self._alike(self._holds, key)
        hold_id = rng.choice(alike).id if alike and rng.random() < 0.8 else new_op_id()
        ttl_ms = rng.choice(TTLS_MS)
        return Call(Kind.ADD_LINE, ((key, rng.randint(1, 2)),), hold_id, value=ttl_ms)

    def _return(self, kind: Kind, key: Key | None = None) -> Call:
        """Some of what an order or a sale handed over comes back; or of nothing that is known."""
        rng = self._rng
        at = key or rng.choice(self.cells)
        from_these = self._alike((*self._holds, *self._orders, *self._orders, *self._sales), at)
        hold_id, sku = new_op_id(), at[0]
        if from_these:
            hold = rng.choice(from_these)
            hold_id, sku = hold.id, rng.choice(hold.cells)[0]
        value = 0
        if kind == Kind.RETURN:
            value = int(rng.choice((*Disposition, Disposition.RESTOCK)))
            hold_id = hold_id if rng.random() < 0.7 else b""
        return Call(kind, (((sku, at[1]), rng.randint(1, 2)),), hold_id, value)

    def _claim(self) -> Call:
        """Some of what was handed over comes back elsewhere, or does not after all."""
        call = self._return(Kind.CLAIM_RETURN)
        if self._rng.random() < 0.7:
            return call
        ((key, units),) = call.lines
        return call._replace(lines=((key, -units),))

    def _hand_over(self) -> Call:
        rng = self._rng
        giver = rng.choice(self._holds)
        key = rng.choice(giver.cells)
        taker = rng.choice(self._alike(self._holds, key)).id if rng.random() < 0.8 else new_op_id()
        return Call(HAND_OVER, ((key, rng.randint(1, 2)),), giver.id, other=taker)

    # --- goods ------------------------------------------------------------------------------------

    def _moment(self, is_late: float = 0.3) -> int:
        """When facts happened that are told now: now (0), or some time ago, with a probability."""
        if self._rng.random() >= is_late:
            return 0
        return time.time_ns() - self._rng.choice(LATE_MS) * NS_PER_MS

    def _fact_kind(self) -> Kind:
        kinds = (
            Kind.SALE, Kind.SALE, Kind.RECEIVE, Kind.RETURN, Kind.RETURN, Kind.ADJUST,
            Kind.SET_SAFETY_STOCK, Kind.INSPECT, Kind.WRITE_OFF, Kind.SET_PRICE,
        )  # fmt: skip
        # A count forgives whatever was wrong before it, so there are few.
        return Kind.COUNT if self._rng.random() < 0.06 else self._rng.choice(kinds)

    def _fact(self, kind: Kind, moment: int, *, is_named: bool) -> Call:
        rng = self._rng
        key, units = rng.choice(self.cells), rng.randint(1, 4)
        call = Call(kind, ((key, units),), occurred_at_ns=moment)
        match kind:
            case Kind.SALE if is_named:
                return self._receipt(call)
            case Kind.ADJUST:
                return call._replace(lines=((key, units * rng.choice((1, -1))),), value=7)
            case Kind.COUNT:
                return call._replace(lines=((key, units * 10),))
            case Kind.RECEIVE:
                # Orders that are paid and then forgotten take more than what comes back.
                return call._replace(lines=((key, units * 3),))
            case Kind.SET_SAFETY_STOCK:
                return Call(kind, ((key, units - 1),))
            case Kind.SET_PRICE:
                return Call(kind, ((key, 0),), value=units)
            case Kind.RETURN:
                return self._return(kind)._replace(occurred_at_ns=moment)
            case Kind.INSPECT:
                to = rng.choice((Disposition.RESTOCK, Disposition.DAMAGED))
                return Call(kind, ((key, rng.randint(1, 2)),), value=int(to))
            case Kind.WRITE_OFF:
                bucket = Flag.DAMAGED if is_named else Flag.QUALITY_CONTROL if moment else 0
                return call._replace(lines=((key, min(units, 2)),), flags=int(bucket), value=7)
        return call

    def _receipt(self, sale: Call) -> Call:
        """A sale with an id: a new one, or one that a till tells again."""
        ((key, _),) = sale.lines
        if self._rng.random() < 0.8:
            self._receipts += 1
        number = max(1, self._receipts)
        return sale._replace(hold=convert.receipt_id(key, number), value=number)

    def _incoming(self) -> list[Call]:
        rng = self._rng
        draw = rng.random()
        if draw < 0.3 or not self._records:
            record = Named(new_op_id(), [rng.choice(self.cells)])
        else:
            record = rng.choice(self._records)
        if draw < 0.4 or not self._records:
            cells = [] if self.cells[-1] in record.cells else [rng.choice(self._joined)]
            date_ms = rng.randrange(3)
            return [
                Call(Kind.EXPECT, ((key, rng.randint(1, 4)),), record.id, value=date_ms)
                for key in {*cells, record.cells[0]}
            ]
        key = rng.choice(record.cells)
        lines = ((key, rng.randint(1, 4)),)
        if draw < 0.85:
            return [Call(Kind.RECEIVE, lines, record.id, occurred_at_ns=self._moment())]
        return [Call(Kind.CANCEL_INCOMING, lines if rng.random() < 0.7 else (), record.id)]

    # --- transfers --------------------------------------------------------------------------------

    def _of_transfer(self) -> Request:
        rng = self._rng
        if rng.random() < 0.2 or not self._transfers:
            return self._new_transfer()
        transfer = rng.choice(self._transfers)
        steps: tuple[Callable[[Transfer, bytes], list[Call]], ...] = (
            self._ship, self._ship, self._ship, self._arrive, self._arrive, self._lose, self._lose,
            self._cancel,
        )  # fmt: skip
        op_id, step = new_op_id(), rng.choice(steps)
        at = transfer.lines[0][0][1] if step == self._cancel else transfer.to
        return Request(op_id, tuple(step(transfer, op_id)), Way.TRANSFER, at=at)

    def _new_transfer(self) -> Request:
        rng, op_id = self._rng, new_op_id()
        source, to = rng.sample(self._places, 2)
        cells = [cell for cell in self._joined if cell[1] == source]
        lines = tuple(
            (cell, rng.randint(1, 3)) for cell in rng.sample(cells, rng.randint(1, len(cells)))
        )
        self._transfers.append(Transfer(op_id, lines, to, in_one=rng.random() < 0.5))
        call = Call(Kind.RESERVE, lines, op_id, value=1, flags=int(Flag.COMMIT_NOW))
        return Request(op_id, (call,), Way.TRANSFER, at=to)

    def _ship(self, transfer: Transfer, op_id: bytes) -> list[Call]:
        lines = transfer.lines
        if not transfer.in_one:
            lines = tuple((cell, 1) for cell, _ in self._some(lines))
        moment = self._moment()
        return [Call(SHIP, lines, transfer.id, transfer.to, other=op_id, occurred_at_ns=moment)]

    def _arrive(self, transfer: Transfer, op_id: bytes) -> list[Call]:
        moment = self._moment()
        return [call._replace(kind=ARRIVE, occurred_at_ns=moment) for call in self._there(transfer)]

    def _lose(self, transfer: Transfer, op_id: bytes) -> list[Call]:
        # All records of a transfer are given up one after the other; there must be one.
        if transfer.in_one and self._rng.random() < 0.5:
            return [Call(LOSE, hold=transfer.id)]
        return [call._replace(kind=LOSE) for call in self._there(transfer)]

    def _there(self, transfer: Transfer) -> list[Call]:
        return [
            Call(ARRIVE, (((sku, transfer.to), self._rng.randint(1, 2)),), transfer.id)
            for (sku, _), _ in self._some(transfer.lines)
        ]

    def _cancel(self, transfer: Transfer, op_id: bytes) -> list[Call]:
        if self._rng.random() < 0.5:
            return [Call(Kind.CANCEL, hold=transfer.id)]
        return [
            Call(Kind.CANCEL, ((cell, 1),), transfer.id) for cell, _ in self._some(transfer.lines)
        ]

    def _some(self, lines: Sequence[_T]) -> list[_T]:
        return self._rng.sample(lines, self._rng.randint(1, len(lines)))


def _is_together(order: Call) -> bool:
    is_at_one_place = len({at for (_, at), _ in order.lines}) == 1
    return len(order.lines) > 1 and is_at_one_place and not order.flags & Flag.PARTIAL

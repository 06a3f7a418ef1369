"""What the clients of one simulation know of their orders, returns and transfers, and the judgement."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import NamedTuple

from actors.transfers import record_id
from engine.reference import ReferenceMachine
from engine.views import Hold, Incoming
from tests.sim.exchanged import Exchange
from tests.sim.moved import Journey
from tests.sim.oracle import Call

Machines = Mapping[int, ReferenceMachine]  # by shard: where the journals lead to


@dataclass(slots=True)
class Order:
    """What a client knows of an order."""

    op_id: bytes
    locations: frozenset[int] = frozenset()  # where it is, if that is known
    held: bool | None = None  # whether the reserve was answered OK; None: never answered
    committed: bool = False  # as a whole, and not touched since
    closed: bool = False  # released or cancelled as a whole, and answered


class Handed(NamedTuple):
    """Units of one cell that left by an order or a sale of this id."""

    hold_id: bytes
    sku: int
    location: int
    units: int


@dataclass(slots=True)
class Return:
    """A return of so many units of what was handed over. `told` is None until it is answered."""

    hold_id: bytes
    sku: int
    units: int
    told: bool | None = None


@dataclass(slots=True)
class Transfer:
    """Units of SKUs as the answers tell. Judged if every call was answered (`is_known`)."""

    op_id: bytes
    requested: Counter[int]
    shipped: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)
    cancelled: Counter[int] = field(default_factory=Counter)  # not to be shipped
    lost: Counter[int] = field(default_factory=Counter)  # shipped, and not to come
    is_known: bool = False

    @property
    def unsent(self) -> Counter[int]:
        return self.requested - self.shipped - self.cancelled

    @property
    def on_its_way(self) -> Counter[int]:
        return self.shipped - self.received - self.lost


@dataclass(slots=True)
class Shop:
    """What the clients of one simulation share."""

    orders: list[Order] = field(default_factory=list)
    handed: list[Handed] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    journeys: list[Journey] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)  # answered ones


def judge_shop(shop: Shop, machines: Machines) -> list[str]:
    """What is wrong when all is quiet."""
    return (
        _judge_orders(shop, machines)
        + _judge_returns(shop, machines)
        + [
            wrong
            for each in shop.transfers
            if each.is_known
            for wrong in _judge_transfer(each, machines)
        ]
    )


def _holds(machines: Machines, hold_id: bytes) -> list[Hold]:
    """A hold's parts."""
    found = [machine.hold(hold_id) for machine in machines.values()]
    return [hold for hold in found if hold is not None]


def _judge_orders(shop: Shop, machines: Machines) -> list[str]:
    wrong = []
    for known in shop.orders:
        holds = _holds(machines, known.op_id)
        committed = [any(line.committed for line in hold.lines) for hold in holds]
        if (known.held is False or known.closed) and any(committed):
            wrong.append(f"order {known.op_id.hex()} was given up, and a part of it is committed")
        if known.committed and not all(committed):
            wrong.append(f"order {known.op_id.hex()} is committed in part only")
    return wrong


def _judge_returns(shop: Shop, machines: Machines) -> list[str]:
    """What clients were told of returns is noted once, and no more than was handed over."""
    told: Counter[tuple[bytes, int]] = Counter()
    in_doubt: Counter[tuple[bytes, int]] = Counter()
    for each in shop.returns:
        told[each.hold_id, each.sku] += each.units if each.told else 0
        in_doubt[each.hold_id, each.sku] += each.units if each.told is None else 0
    wrong = []
    for (hold_id, sku), units in told.items():
        lines = [
            line for hold in _holds(machines, hold_id) for line in hold.lines if line.sku == sku
        ]
        noted = sum(line.returned for line in lines)
        name = f"SKU {sku} of {hold_id.hex()}"
        if not units <= noted <= units + in_doubt[hold_id, sku]:
            wrong.append(f"{name}: {units} were told to be back, {noted} are noted")
        if noted > sum(line.fulfilled for line in lines):
            wrong.append(f"{name}: more is back than was handed over")
    return wrong


def _judge_transfer(known: Transfer, machines: Machines) -> list[str]:
    """Every unit is in one place: at the source, on its way, received, or given up."""
    committed, left = Counter[int](), Counter[int]()
    for hold in _holds(machines, known.op_id):
        for line in hold.lines:
            committed[line.sku] += line.committed
            left[line.sku] += line.fulfilled
    expected, outstanding, received = Counter[int](), Counter[int](), Counter[int]()
    for record in _records(known.op_id, machines):
        for each in record.lines:
            expected[each.sku] += each.expected
            outstanding[each.sku] += each.outstanding
            received[each.sku] += each.received
    sums = (
        ("committed at the source", committed, known.unsent),
        ("shipped", left, known.shipped),
        ("expected", expected, known.shipped),
        ("received", received, known.received),
        ("on its way", outstanding, known.on_its_way),
    )
    return [
        f"transfer {known.op_id.hex()}: of SKU {sku}, {is_so[sku]} are {name}, not {told[sku]}"
        for name, is_so, told in sums
        for sku in known.requested
        if is_so[sku] != told[sku]
    ]


def _records(transfer_id: bytes, machines: Machines) -> list[Incoming]:
    """A transfer's records: the parts of all shards, one record after the other."""
    numbered = (
        [machine.incoming(record_id(transfer_id, number)) for machine in machines.values()]
        for number in count()
    )
    return [part for parts in takewhile(any, numbered) for part in parts if part is not None]

"""A shop of two cells for tests that read as statements; both machines stand behind it."""

from typing import Any

from engine.operations import Disposition, Flag, Kind, id_to_pair, line_id
from engine.reference import Key, Line
from engine.status import Status
from engine.views import Cell, Hold, HoldState, Incoming
from tests.property.histories import BERLIN, BOSTON, EUR, MS, line, linked, request
from tests.property.pair import Pair

TEA: Key = (1, BERLIN)
JAM: Key = (2, BERLIN)
FAR: Key = (1, BOSTON)
OPENED_NS = 1_700_000_000_000 * MS
NO_LINE: Key = (0, 0)


def hold_id(name: str) -> bytes:
    """The id of the hold that is called `name`."""
    return name.encode().ljust(16, b"\0")


class Shop:
    """Applies one block a call, a nanosecond after the last one unless time is let go by."""

    def __init__(self, tea: int = 0, jam: int = 0, **bounds: int) -> None:
        self.pair = Pair(now_ns=OPENED_NS, **bounds)
        stock = [receive(units, cell) for cell, units in ((TEA, tea), (JAM, jam)) if units]
        if stock:
            self.does(*stock)

    @property
    def now_ns(self) -> int:
        return self.pair.now_ns

    def wait(self, ns: int) -> None:
        """The next block comes `ns` after the last one."""
        self.pair.now_ns += ns - 1

    def wait_until(self, now_ns: int) -> None:
        """The next block comes at this time."""
        self.pair.now_ns = now_ns - 1

    def answers(self, *lines: Line, name: str = "request") -> list[Status]:
        """Apply one request; the holds it makes have the ids `name`, `name` + 1, ..."""
        self.pair.now_ns += 1
        return self.pair.apply([request(hold_id(name), lines)])

    def answer(self, *lines: Line, name: str = "request") -> Status:
        """The answer to a request whose lines are all answered alike."""
        (status,) = set(self.answers(*lines, name=name))
        return status

    def does(self, *lines: Line, name: str = "request") -> None:
        """Apply a request that must succeed."""
        assert self.answer(*lines, name=name) is Status.OK

    def holds(self, name: str, *lines: Line) -> None:
        """Reserve; the lines are one order."""
        self.does(*linked(lines), name=name)

    def cell(self, key: Key = TEA) -> Cell:
        cell = self.pair.machine.cell(*key)
        assert cell is not None
        return cell

    def available(self, key: Key = TEA) -> int:
        return self.cell(key).available

    def hold(self, name: str, index: int = 0) -> Hold:
        hold = self.pair.machine.hold(line_id(hold_id(name), index))
        assert hold is not None
        return hold

    def record(self, name: str) -> Incoming:
        record = self.pair.machine.incoming(hold_id(name))
        assert record is not None
        return record

    def on_its_way(self, name: str) -> list[tuple[int, int, int]]:
        """(expected, outstanding, received) of each line of an incoming record."""
        lines = self.record(name).lines
        return [(each.expected, each.outstanding, each.received) for each in lines]

    def endangered(self) -> list[list[tuple[str, int, int]]]:
        """(name, pending, committed) of the holds that each fact of the newest block endangers."""
        return [
            [(each.hold_id.rstrip(b"\0").decode(), each.pending, each.committed) for each in holds]
            for *_, holds in self.pair.endangered
        ]

    def state(self, name: str) -> HoldState:
        return self.hold(name).state

    def returned(self, name: str) -> list[int]:
        """What came back of each line of a hold or a sale."""
        return [each.returned for each in self.hold(name).lines]

    def units(self, name: str) -> list[tuple[int, int, int]]:
        """(pending, committed, fulfilled) of each line of a hold."""
        return [(each.pending, each.committed, each.fulfilled) for each in self.hold(name).lines]


def reserve(units: int, cell: Key = TEA, *, ttl_ms: int = 1000, **more: Any) -> Line:
    return line(Kind.RESERVE, cell, units, ttl_ms, **more)


def instead_of(old: str, reserved: Line, *, again: bool = False) -> Line:
    """A reserve that takes the place of an older hold; `again`: which may still be paid late."""
    hi, lo = id_to_pair(hold_id(old))
    flags = reserved.flags | int(Flag.SUPERSEDE) | int(Flag.RE_RESERVE) * again
    return reserved._replace(flags=flags, hold_hi=hi, hold_lo=lo)


def commit(
    name: str,
    units: int = 0,
    cell: Key = NO_LINE,
    *,
    rest: bool = False,
    again: bool = False,
    channel: int = 0,
) -> Line:
    flags = int(Flag.RELEASE_REST) * rest | int(Flag.RE_RESERVE) * again
    return line(Kind.COMMIT, cell, units, hold=hold_id(name), flags=flags, channel=channel)


def extend(name: str, ttl_ms: int) -> Line:
    return line(Kind.EXTEND, value=ttl_ms, hold=hold_id(name))


def release(name: str, units: int = 0, cell: Key = NO_LINE, *, for_good: bool = False) -> Line:
    flags = int(Flag.SUPERSEDE) * for_good
    return line(Kind.RELEASE, cell, units, hold=hold_id(name), flags=flags)


def fulfil(name: str, units: int = 0, cell: Key = NO_LINE, **more: Any) -> Line:
    return line(Kind.FULFIL, cell, units, hold=hold_id(name), **more)


def move(name: str, to: int, cell: Key = NO_LINE, units: int = 0, *, channel: int = 0) -> Line:
    """`cell` names a SKU and the location it leaves; 0 is every one."""
    sku, source = cell
    return line(Kind.MOVE, (sku, to), units, source, hold=hold_id(name), channel=channel)


def add_line(name: str, units: int, cell: Key = TEA, *, ttl_ms: int = 1000, **more: Any) -> Line:
    return line(Kind.ADD_LINE, cell, units, ttl_ms, hold=hold_id(name), **more)


def hands_over(giver: str, taker: str, units: int, cell: Key = TEA) -> list[Line]:
    """Units go from one hold to another."""
    gives = release(giver, units, cell)._replace(flags=int(Flag.LINKED))
    return [gives, add_line(taker, units, cell, ttl_ms=0)]


def unfulfil(name: str, units: int = 0, cell: Key = NO_LINE, **more: Any) -> Line:
    return line(Kind.UNFULFIL, cell, units, hold=hold_id(name), **more)


def cancel(name: str, units: int = 0, cell: Key = NO_LINE) -> Line:
    return line(Kind.CANCEL, cell, units, hold=hold_id(name))


def sale(units: int, cell: Key = TEA, **more: Any) -> Line:
    return line(Kind.SALE, cell, units, **more)


def comes_back(units: int, disposition: Disposition, cell: Key = TEA, **more: Any) -> Line:
    return line(Kind.RETURN, cell, units, int(disposition), **more)


def receive(units: int, cell: Key = TEA, **more: Any) -> Line:
    return line(Kind.RECEIVE, cell, units, **more)


def expect(units: int, cell: Key = TEA, name: str | None = None, *, at_ms: int = 0) -> Line:
    """On its way, in the record `name`; without a name, in one that has the line's own id."""
    return line(Kind.EXPECT, cell, units, at_ms, **({"hold": hold_id(name)} if name else {}))


def receive_of(name: str, units: int, cell: Key = TEA) -> Line:
    return line(Kind.RECEIVE, cell, units, hold=hold_id(name))


def cancel_incoming(name: str, units: int = 0, cell: Key = NO_LINE) -> Line:
    return line(Kind.CANCEL_INCOMING, cell, units, hold=hold_id(name))


def adjust(units: int, reason: int = 1, cell: Key = TEA, **more: Any) -> Line:
    return line(Kind.ADJUST, cell, units, reason, **more)


def count(units: int, cell: Key = TEA, **more: Any) -> Line:
    return line(Kind.COUNT, cell, units, **more)


def claim(name: str, units: int, sku: int = TEA[0]) -> Line:
    return line(Kind.CLAIM_RETURN, (sku, 0), units, hold=hold_id(name))


def inspect(units: int, disposition: Disposition, cell: Key = TEA) -> Line:
    return line(Kind.INSPECT, cell, units, int(disposition))


def write_off(units: int, bucket: int = 0, cell: Key = TEA, **more: Any) -> Line:
    return line(Kind.WRITE_OFF, cell, units, 1, flags=bucket, **more)


def safety_stock(units: int, cell: Key = TEA) -> Line:
    return line(Kind.SET_SAFETY_STOCK, cell, units)


def price(minor: int, cell: Key = TEA, currency: int = EUR) -> Line:
    return line(Kind.SET_PRICE, cell, value=minor, currency=currency)

"""What goes between processes arrives as it was."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from engine import wire
from engine.history import Event, History
from engine.machine import Machine
from engine.operations import Answer, Kind, Request
from engine.views import (
    Cell,
    DatedIncoming,
    Endangered,
    EndangeredHold,
    Hold,
    HoldLine,
    HoldState,
    Incoming,
    IncomingLine,
)

RECEIPTS = Request.of(
    b"r" * 16, 3, kind=Kind.RECEIVE, sku=[1, 2, 1], location=1, quantity=[5, 6, 7],
    want_available=True,
)  # fmt: skip


def test_requests_arrive_as_they_were() -> None:
    sale = Request.of(b"s" * 16, 1, kind=Kind.SALE, sku=1, location=1, quantity=2)
    arrived = wire.decode_requests(wire.encode_requests([RECEIPTS, sale]))
    assert [each.op_id for each in arrived] == [b"r" * 16, b"s" * 16]
    for got, sent in zip(arrived, (RECEIPTS, sale), strict=True):
        assert (got.lines, got.want_available) == (sent.lines, sent.want_available)
        assert got.digest == sent.digest == got._digest()
        assert got.columns.keys() == sent.columns.keys()


def test_a_machine_applies_requests_as_they_arrive() -> None:
    """Their columns cannot be written to, and need not be aligned."""
    machine = Machine()
    machine.set_sku_limit(2)
    machine.set_location(1, owned=True, currency=978)
    (arrived,) = wire.decode_requests(wire.encode_requests([RECEIPTS]))
    assert not arrived.columns["quantity"].flags.writeable
    assert machine.apply(1, [arrived]).available.tolist() == [5, 6, 12]


@pytest.mark.parametrize(
    "odd",
    [
        7,
        [(b"r" * 16, 1, False)],
        [(b"r" * 16, 1, False, b"", {99: b"\0"})],
        [(b"r" * 16, 2, False, b"", {0: b"\0"})],
        [(b"r" * 16, 1, False, b"", {2: b"\0"})],
    ],
)
def test_what_are_no_requests_is_refused(odd: Any) -> None:
    with pytest.raises(wire.WireError, match="not a list of requests"):
        wire.decode_requests(msgpack.packb(odd))


@pytest.mark.parametrize("odd", [7, [7], [[]], [(b"", b"", 1, 2, 3, b"", 9)], [(b"", b"", [])]])
def test_what_are_no_answers_is_refused(odd: Any) -> None:
    with pytest.raises(wire.WireError, match="not a list of answers"):
        wire.decode_answers(msgpack.packb(odd))


HOLD = Hold(HoldState.PENDING, 123, [HoldLine(1, 2, 3, 4, 5, 6), HoldLine(7, 8, 9)])
RECORD = Incoming(HoldState.INCOMING, 456, [IncomingLine(1, 2, 3, 4, 5)])
CELLS = [Cell(*range(1, 10)), None, Cell()]
HISTORY = History([Event(b"r" * 16, *range(14))], complete=True)
DUE = [DatedIncoming(1, 2, 3, 4), DatedIncoming(5, 6, 0, 7)]


@pytest.mark.parametrize(
    ("encode", "decode", "views"),
    [
        (wire.encode_hold, wire.decode_hold, [HOLD, None]),
        (wire.encode_incoming, wire.decode_incoming, [RECORD, None]),
        (wire.encode_cells, wire.decode_cells, [CELLS, []]),
        (wire.encode_history, wire.decode_history, [HISTORY]),
        (wire.encode_dated, wire.decode_dated, [DUE, []]),
    ],
)
def test_views_arrive_as_they_were(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], views: list[Any]
) -> None:
    for view in views:
        assert decode(encode(view)) == view


def test_answers_arrive_with_what_was_granted_and_what_their_facts_endanger() -> None:
    holds = (EndangeredHold(b"h" * 16, 2, 0), EndangeredHold(b"i" * 16, 0, 1))
    answers = [
        Answer(b"\0\0", bytes(16), 1, 2, 3, bytes(range(16))),
        (wire.OVERLOADED, "many wait already"),
        Answer(
            b"\0\0\0", b"", 4, 5, 6, bytes(24),
            (Endangered(0, 7, 8, 3, holds), Endangered(1, 9, 8, 1, ()), Endangered(2, 7, 8, 3, holds)),
        ),
    ]  # fmt: skip
    assert wire.decode_answers(wire.encode_answers(answers)) == answers

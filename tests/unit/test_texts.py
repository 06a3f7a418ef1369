"""A refusal names the fields that the call's own message has."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from adapters.rpc import texts
from adapters.rpc.texts import Texts
from engine import limits
from engine.operations import Kind
from engine.status import MESSAGES, Status
from onhand.v1 import stock_pb2, transfer_pb2

ON_HOLD = [(told, stock_pb2.HoldRequest) for told in texts.ON_HOLD.values()]
CALLS = [
    (texts.RESERVE, stock_pb2.ReserveRequest),
    (texts.RESERVE_IN_CHANNEL, stock_pb2.ReserveRequest),
    (texts.MOVE, stock_pb2.MoveRequest),
    *ON_HOLD,
    (texts.SALE, stock_pb2.SaleRequest),
    (texts.RETURN, stock_pb2.ReturnRequest),
    (texts.RETURN, stock_pb2.ExchangeRequest),
    (texts.EXCHANGE_IN_CHANNEL, stock_pb2.ExchangeRequest),
    (texts.INCOMING, stock_pb2.ReceiveRequest),
    (texts.INCOMING, stock_pb2.ExpectRequest),
    (texts.INCOMING, stock_pb2.CancelIncomingRequest),
    (texts.SHIPPING, transfer_pb2.ShipRequest),
    (texts.SHIPPING, transfer_pb2.CancelTransferRequest),
    (texts.ARRIVING, transfer_pb2.ReceiveTransferRequest),
    (texts.ARRIVING, transfer_pb2.LoseTransferRequest),
]


def fields_of(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        yield field.name
        if field.message_type is not None:
            yield from fields_of(field.message_type)


@pytest.mark.parametrize(("told", "message"), CALLS)
def test_what_a_call_is_told_otherwise_names_its_own_fields(told: Texts, message: type) -> None:
    known = set(fields_of(message.DESCRIPTOR))  # type: ignore[attr-defined]
    otherwise = [text for text, general in zip(told, texts.GENERAL, strict=True) if text != general]
    assert otherwise
    # Only some calls have a field hold_id, and sales may not name what another call knows.
    for text in otherwise:
        assert set(text.partition(":")[0].split(", ")) <= known, text


def test_each_status_has_a_text_in_every_call() -> None:
    for told, _ in [*CALLS, (texts.GENERAL, None)]:
        assert [bool(text) for text in told] == [status != Status.OK for status in Status]
    assert texts.GENERAL[1:] == tuple(MESSAGES[status] for status in Status if status)


def test_the_same_status_says_what_is_meant() -> None:
    exceeds = Status.EXCEEDS_HOLD
    assert texts.ON_HOLD[Kind.RELEASE][exceeds] == "quantity: more than the hold has pending"
    assert texts.ON_HOLD[Kind.FULFIL][exceeds] == "quantity: more than the hold has committed"
    assert texts.RETURN[exceeds] == "quantity: more than was handed over and is not back yet"
    assert texts.INCOMING[exceeds] == "quantity: more than is outstanding"
    assert texts.RESERVE[Status.HOLD_NOT_PENDING].startswith("supersedes: nothing of the hold is")


def test_how_far_ahead_a_moment_may_be_is_said() -> None:
    assert f" {limits.MAX_CLOCK_SKEW_MS} ms ahead" in texts.GENERAL[Status.INVALID_MOMENT]


def test_what_is_full_is_named_with_its_own_limit() -> None:
    """Some statuses are about several things that can be full, each to a limit of its own."""
    lines, units = (
        texts.GENERAL[status] for status in (Status.TOO_MANY_LINES, Status.BALANCE_LIMIT)
    )
    assert lines == (
        "lines: more than 512 are linked, or the hold or the incoming record would have more"
    )
    assert units == (
        "quantity: a counter of the cell would pass 1000000000000000, or a line of the incoming "
        "record 1000000000"
    )
    assert (limits.MAX_HOLD_LINES, limits.MAX_BALANCE, limits.MAX_QUANTITY) == (512, 10**15, 10**9)

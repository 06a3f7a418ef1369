"""From messages about goods that moved, or are on their way, to the engine's requests.

As in `adapters.rpc.requests`, what is malformed raises InvalidField and what can be judged is left
to the machine. The ids of sales and of incoming records that nobody has chosen are made here.
"""

from collections.abc import Collection
from typing import Final

import numpy as np

from adapters.receipts import sale_id
from adapters.rpc.requests import (
    InvalidField,
    Line,
    channel_number,
    check_count,
    check_id,
    check_length,
    facts,
    lines_of,
    linked,
    location_hint,
    many,
    ttl_of,
)
from engine import limits
from engine.catalogue import Catalogue
from engine.operations import COLUMNS, Flag, Kind, Request, id_to_pair
from onhand.v1 import stock_pb2

_NO_HOLD: Final = (0, 0)
_BUCKETS: Final = {
    stock_pb2.BUCKET_SELLABLE: 0,
    stock_pb2.BUCKET_DAMAGED: Flag.DAMAGED,
    stock_pb2.BUCKET_QUALITY_CONTROL: Flag.QUALITY_CONTROL,
}


def sale(message: stock_pb2.SaleRequest, catalogue: Catalogue) -> tuple[Request, list[bytes]]:
    """Read a Sale; also the ids of its lines, none when it names no receipts."""
    lines = lines_of(message.op_id, message.lines, catalogue)
    ids: list[bytes] = []
    if message.receipt_lines:
        if len(message.receipt_lines) != len(lines):
            told = f"{len(message.receipt_lines)} entries, must be none or {len(lines)}, as lines"
            raise InvalidField("receipt_lines", told)
        ids = [
            _sale_id_of(f"receipt_lines[{number}]", location, each)
            for number, ((_, location, _), each) in enumerate(
                zip(lines, message.receipt_lines, strict=True)
            )
        ]
    request = facts(
        message.op_id,
        Kind.SALE,
        lines,
        occurred_at_ns=message.occurred_at_ns,
        holds=[id_to_pair(each) for each in ids],
    )
    return request, ids


def returned(message: stock_pb2.ReturnRequest, catalogue: Catalogue) -> tuple[Request, list[int]]:
    """Read a Return; also where each line was handed over (0: it does not say)."""
    lines, holds, hints = _return_lines("lines", message.op_id, message.lines, catalogue)
    request = facts(
        message.op_id,
        Kind.RETURN,
        lines,
        [each.disposition for each in message.lines],
        occurred_at_ns=message.occurred_at_ns,
        holds=holds if any(hold != _NO_HOLD for hold in holds) else None,
    )
    return request, hints


def exchange(message: stock_pb2.ExchangeRequest, catalogue: Catalogue) -> tuple[Request, list[int]]:
    """Read an Exchange: returns and reserves, all linked; also where each line was handed over."""
    back, holds, hints = _return_lines("returns", message.op_id, message.returns, catalogue)
    check_count("lines", len(back) + len(message.lines))
    out = lines_of(message.op_id, message.lines, catalogue)
    ttl_ms = ttl_of(message)
    flags = linked(len(back) + len(out))
    if message.commit_now:
        flags[len(back) :] |= np.uint8(Flag.COMMIT_NOW)
    values = [each.disposition for each in message.returns] + [ttl_ms] * len(out)
    high, low = zip(*holds, *[_NO_HOLD] * len(out), strict=True)
    request = many(
        message.op_id,
        [Kind.RETURN] * len(back) + [Kind.RESERVE] * len(out),
        back + out,
        flags=flags,
        value=np.array(values, COLUMNS["value"]),
        channel=channel_number(message.channel, catalogue),
        occurred_at_ns=message.occurred_at_ns,
        hold_hi=np.array(high, COLUMNS["hold_hi"]),
        hold_lo=np.array(low, COLUMNS["hold_lo"]),
    )
    return request, hints + [0] * len(out)


def receive(message: stock_pb2.ReceiveRequest, catalogue: Catalogue) -> Request:
    """Read a Receive, of what was expected or not."""
    lines = lines_of(message.op_id, message.lines, catalogue)
    holds = None
    if message.incoming_id:
        check_id("incoming_id", message.incoming_id)
        holds = [id_to_pair(message.incoming_id)] * len(lines)
    moment = message.occurred_at_ns
    return facts(message.op_id, Kind.RECEIVE, lines, occurred_at_ns=moment, holds=holds)


def adjust(message: stock_pb2.AdjustRequest, catalogue: Catalogue) -> Request:
    """Read an Adjust."""
    lines = lines_of(message.op_id, message.lines, catalogue)
    reasons = [message.reason] * len(lines)
    return facts(message.op_id, Kind.ADJUST, lines, reasons, occurred_at_ns=message.occurred_at_ns)


def inspect(message: stock_pb2.InspectRequest, catalogue: Catalogue) -> Request:
    """Read an Inspect: the disposition is each line's own."""
    lines = lines_of(message.op_id, [each.line for each in message.lines], catalogue, ".line")
    return facts(message.op_id, Kind.INSPECT, lines, [each.disposition for each in message.lines])


def write_off(message: stock_pb2.WriteOffRequest, catalogue: Catalogue) -> Request:
    """Read a WriteOff."""
    if message.bucket not in _BUCKETS:
        raise InvalidField("bucket", f"{message.bucket}, must be 0 to {max(_BUCKETS)}")
    lines = lines_of(message.op_id, message.lines, catalogue)
    return facts(
        message.op_id,
        Kind.WRITE_OFF,
        lines,
        [message.reason] * len(lines),
        flags=_BUCKETS[message.bucket],
        occurred_at_ns=message.occurred_at_ns,
    )


def expect(message: stock_pb2.ExpectRequest, catalogue: Catalogue) -> Request:
    """Read an Expect; a record that is not named gets the op_id for its id."""
    lines = lines_of(message.op_id, message.lines, catalogue)
    incoming_id = message.incoming_id or message.op_id
    check_id("incoming_id", incoming_id)
    expected_at_ms = check_expected_at(message.expected_at_ms)
    holds, values = [id_to_pair(incoming_id)] * len(lines), [expected_at_ms] * len(lines)
    return facts(message.op_id, Kind.EXPECT, lines, values, holds=holds)


def check_expected_at(expected_at_ms: int) -> int:
    """Give back when goods are expected, ms since 1970; refuse what is no such moment."""
    if not 0 <= expected_at_ms <= limits.MAX_EXPECTED_AT_MS:
        told = f"{expected_at_ms}, must be 0 to {limits.MAX_EXPECTED_AT_MS}"
        raise InvalidField("expected_at_ms", told)
    return expected_at_ms


def _return_lines(
    field: str, op_id: bytes, lines: Collection[stock_pb2.ReturnLine], catalogue: Catalogue
) -> tuple[list[Line], list[tuple[int, int]], list[int]]:
    """Lines that came back; what each is of, as the halves of an id; and where that was."""
    found = lines_of(op_id, [each.line for each in lines], catalogue, ".line", field)
    holds, hints = [], []
    for number, (each, (_, location, _)) in enumerate(zip(lines, found, strict=True)):
        path = f"{field}[{number}]"
        sold_at = location_hint(f"{path}.sold_at", each.sold_at, catalogue)
        if each.HasField("receipt_line"):
            if each.against:
                raise InvalidField(f"{path}.against", "given, and receipt_line too")
            sold_at = sold_at or location
            against = _sale_id_of(f"{path}.receipt_line", sold_at, each.receipt_line)
        else:
            against = each.against
            if against:
                check_id(f"{path}.against", against)
        holds.append(id_to_pair(against) if against else _NO_HOLD)
        # Where it came back may be no location at all: the machine says so, and nothing is looked for.
        hints.append(sold_at if sold_at <= limits.MAX_LOCATIONS else 0)
    return found, holds, hints


def _sale_id_of(field: str, location: int, line: stock_pb2.ReceiptLine) -> bytes:
    check_length(f"{field}.terminal", line.terminal, least=1)
    check_length(f"{field}.receipt", line.receipt, least=1)
    if not line.line:
        raise InvalidField(f"{field}.line", "0, must be 1 or more")
    return sale_id(location, line.terminal, line.receipt, line.line)

"""Requests, answers and views as bytes between processes of one release: gateway to shard.

Msgpack around packed columns, so that Python touches a batch once and not its lines. Nothing is
kept in this form: the journal has its own codec (`engine.block`), and clients speak the protos.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Final

import msgpack
import numpy as np

from engine.history import Event, History
from engine.operations import COLUMNS, Answer, Request
from engine.shortages import packed_endangered, unpacked_endangered
from engine.views import (
    Cell,
    DatedIncoming,
    Hold,
    HoldLine,
    HoldState,
    Incoming,
    IncomingLine,
)

OVERLOADED: Final = "overloaded"
UNAVAILABLE: Final = "unavailable"

_NAMES: Final = tuple(COLUMNS)
_NUMBERS: Final = {name: number for number, name in enumerate(_NAMES)}
_DTYPES: Final = tuple(COLUMNS.values())


class WireError(ValueError):
    """The bytes are not what the other side of the same release would have sent."""


def encode_requests(requests: Sequence[Request]) -> bytes:
    """Encode requests with their digests."""
    packed: bytes = msgpack.packb(
        [
            (
                request.op_id,
                request.lines,
                request.want_available,
                request.digest,
                {_NUMBERS[name]: column.tobytes() for name, column in request.columns.items()},
            )
            for request in requests
        ]
    )
    return packed


def decode_requests(payload: bytes) -> list[Request]:
    """Decode requests; their columns are read-only views of the payload's bytes."""
    try:
        return [
            Request(op_id, lines, _columns(lines, columns), want_available, digest)
            for op_id, lines, want_available, digest, columns in _unpack(payload)
        ]
    except (TypeError, ValueError, IndexError) as error:
        raise WireError(f"not a list of requests: {error}") from error


def _columns(lines: int, packed: dict[int, bytes]) -> dict[str, Any]:
    columns = {
        _NAMES[number]: np.frombuffer(data, _DTYPES[number]) for number, data in packed.items()
    }
    if any(len(column) != lines for column in columns.values()):
        raise ValueError(f"a column does not have {lines} values")
    return columns


def encode_answers(answers: Sequence[Answer | tuple[str, str]]) -> bytes:
    """Encode answers; in place of one may stand (OVERLOADED or UNAVAILABLE, why)."""
    packed: bytes = msgpack.packb(
        [answer if isinstance(answer, tuple) else _packed_answer(answer) for answer in answers]
    )
    return packed


def decode_answers(payload: bytes) -> list[Answer | tuple[str, str]]:
    """Decode answers, and what stands in place of some."""
    try:
        return [
            (str(each[0]), str(each[1])) if len(each) == 2 else _unpacked_answer(each)
            for each in _unpack(payload)
        ]
    except (TypeError, ValueError, IndexError) as error:
        raise WireError(f"not a list of answers: {error}") from error


def _packed_answer(answer: Answer) -> tuple[Any, ...]:
    plain = (answer.status, answer.available, answer.now_ns, answer.epoch, answer.seq)
    return *plain, answer.granted, packed_endangered(answer.endangered)


def _unpacked_answer(fields: list[Any]) -> Answer:
    fields[-1] = unpacked_endangered(fields[-1])
    return Answer(*fields)


def encode_hold(hold: Hold | None) -> bytes:
    """Encode a hold, or that there is none."""
    fields = None
    if hold is not None:
        lines = [
            (line.sku, line.location, line.pending, line.committed, line.fulfilled, line.returned)
            for line in hold.lines
        ]
        fields = (int(hold.state), hold.deadline_ns, lines)
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_hold(payload: bytes) -> Hold | None:
    """Decode a hold, or None."""
    fields = _unpack(payload)
    if fields is None:
        return None
    state, deadline_ns, lines = fields
    return Hold(HoldState(state), deadline_ns, [HoldLine(*line) for line in lines])


def encode_history(history: History) -> bytes:
    """Encode a hold's history."""
    packed: bytes = msgpack.packb((history.complete, [astuple(each) for each in history.events]))
    return packed


def decode_history(payload: bytes) -> History:
    """Decode a hold's history."""
    complete, events = _unpack(payload)
    return History([Event(*each) for each in events], complete)


def encode_incoming(record: Incoming | None) -> bytes:
    """Encode an incoming record, or that there is none."""
    packed: bytes = msgpack.packb(None if record is None else astuple(record))
    return packed


def decode_incoming(payload: bytes) -> Incoming | None:
    """Decode an incoming record, or None."""
    fields = _unpack(payload)
    if fields is None:
        return None
    state, expected_at_ns, lines = fields
    return Incoming(HoldState(state), expected_at_ns, [IncomingLine(*line) for line in lines])


def encode_dated(incoming: Sequence[DatedIncoming]) -> bytes:
    """Encode what cells have outstanding."""
    packed: bytes = msgpack.packb(list(incoming))
    return packed


def decode_dated(payload: bytes) -> list[DatedIncoming]:
    """Decode what cells have outstanding."""
    return [DatedIncoming(*each) for each in _unpack(payload)]


def encode_cells(cells: Sequence[Cell | None]) -> bytes:
    """Encode cells, and the absence of some."""
    packed: bytes = msgpack.packb([None if cell is None else _words(cell) for cell in cells])
    return packed


def decode_cells(payload: bytes) -> list[Cell | None]:
    """Decode cells."""
    return [None if words is None else Cell(*words) for words in _unpack(payload)]


def _words(cell: Cell) -> tuple[int, ...]:
    return (
        cell.on_hand,
        cell.reserved,
        cell.committed,
        cell.damaged,
        cell.quality_control,
        cell.safety_stock,
        cell.incoming,
        cell.price_minor,
        cell.price_version,
    )


def _unpack(payload: bytes) -> Any:
    return msgpack.unpackb(payload, strict_map_key=False)

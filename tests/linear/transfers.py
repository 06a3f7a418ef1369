"""The rules of transfers, as far as they are not those of the order and the records they consist of.

The gateway takes steps: it looks which of a transfer's records it is about, and then asks the shard.
So goods that leave are expected at a later moment, and what arrives may be of any record that there is.
"""

import hashlib

from engine.operations import Kind
from engine.status import Status
from engine.views import HoldState
from tests.linear import goods, holds
from tests.linear.history import SHIPPED, Answer, Call
from tests.linear.state import Draft, Moment


def record_id(transfer_id: bytes, number: int) -> bytes:
    """The id of one of a transfer's incoming records, as the contract states it."""
    named = transfer_id + b"incoming" + number.to_bytes(4, "little")
    return hashlib.blake2b(named, digest_size=16).digest()


def ship(draft: Draft, call: Call, moment: Moment) -> Answer:
    """Goods leave their source, each line by itself; it is noted what is to be expected then."""
    answers: list[tuple[object, ...]] = []
    left = []
    for (sku, at), units in call.lines:
        moment_ns = call.occurred_at_ns
        part = Call(Kind.FULFIL, (((sku, at), units),), call.hold, occurred_at_ns=moment_ns)
        (answer,) = holds.on_hold(draft, part, moment)
        answers.append(answer)
        if answer[0] == Status.OK:
            left.append(((sku, call.value), units))
    draft.put((SHIPPED, call.other), tuple(left))
    return tuple(answers)


def shipped(draft: Draft, call: Call, moment: Moment) -> Answer:
    """What has left is expected, of the first record that is not closed. Records close for good."""
    left = draft.get((SHIPPED, call.other))
    if not left:
        return ((Status.UNKNOWN_HOLD,),)
    open_one = _records(draft, call.hold)
    for number in range(open_one):
        record = draft.record(record_id(call.hold, number))
        if record is not None and record.state == HoldState.INCOMING:
            open_one = number
            break
    goods.add_expected(draft, record_id(call.hold, open_one), left, 0)
    draft.put((SHIPPED, call.other), None)
    return ((Status.OK,),)


def arrive(draft: Draft, call: Call, moment: Moment) -> Answer:
    """Goods come in, of one of the records that there are."""
    return goods.fact(draft, _of_record(draft, call, Kind.RECEIVE), moment)


def lose(draft: Draft, call: Call, moment: Moment) -> Answer:
    """Goods will not come, of one of the records that there are."""
    return goods.cancel_incoming(draft, _of_record(draft, call, Kind.CANCEL_INCOMING), moment)


def _of_record(draft: Draft, call: Call, kind: Kind) -> Call:
    number = draft.one_of(max(1, _records(draft, call.hold)))
    return call._replace(kind=kind, hold=record_id(call.hold, number))


def _records(draft: Draft, transfer_id: bytes) -> int:
    """How many records a transfer has."""
    number = 0
    while draft.record(record_id(transfer_id, number)) is not None:
        number += 1
    return number

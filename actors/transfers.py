"""Transfers: stock that is sent from one location to another, on one shard or two.

A transfer is an order at its source, committed, and records of what is on its way at its destination.
Its id is the order's. As in `actors.spanning`, nothing is remembered here: a step has an id that
follows from the operation's, and the same op_id again goes on where the last attempt stopped.

A record that nothing is outstanding of is closed for good, so a transfer that is shipped in parts has
one record after the other: number 0, and the next when all of the last one has come or is given up.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Final

import numpy as np

from actors.parts import hold_id_of, on, step_id, step_of
from actors.router import Operation, Router
from actors.shards import in_doubt_half_way
from engine import limits
from engine.operations import Answer, Kind, Request, column_of
from engine.status import Status
from engine.views import Hold, Incoming, IncomingLine

Told = tuple[int, Answer]
"""The shard of the first line, and the answer."""

_OK: Final = int(Status.OK)
_DESTINATION: Final = "destination"  # what is noted of a transfer
# What shards say that are to give records up, by what counts less; all else counts more.
_SAID: Final = (Status.OK, Status.HOLD_NOT_PENDING, Status.UNKNOWN_HOLD)


def record_id(transfer_id: bytes, number: int) -> bytes:
    """The id of one of a transfer's incoming records, as the contract states it."""
    named = transfer_id + b"incoming" + number.to_bytes(4, "little")
    return hashlib.blake2b(named, digest_size=limits.OP_ID_BYTES).digest()


async def is_to(router: Router, transfer_id: bytes, destination: int) -> None:
    """Have it remembered where a transfer goes, when it was asked for."""
    await router.remember(transfer_id, _DESTINATION, destination)


async def destination_of(router: Router, transfer_id: bytes) -> int:
    """Where a transfer goes, by what was shipped or by what was asked for; 0 when that is forgotten."""
    first = await router.incoming(record_id(transfer_id, 0), sure=True)
    if first is not None and first.lines:
        return first.lines[0].location
    return await router.remembered(transfer_id, _DESTINATION)


@in_doubt_half_way
async def ship(router: Router, request: Request, destination: int, expected_at_ms: int) -> Told:
    """Hand lines of a transfer over at its source, and expect them at its destination.

    `request` is the FULFIL; its lines are judged one by one, and those that are refused are not
    expected. Between the steps goods have left and are not on their way yet: never both places have
    them. When they cannot be expected, they are taken back.
    """
    alone = router.alone([_key(request)], "ship", request, destination, expected_at_ms)
    async with alone as begin:
        await begin()
        return await _ship(router, request, destination, expected_at_ms)


def _key(request: Request) -> bytes:
    """What stands for a transfer among holds; its own id is its order's, which has its own turns."""
    return step_id(hold_id_of(request), "transfer")


async def _ship(router: Router, request: Request, destination: int, expected_at_ms: int) -> Told:
    shard, answer = await router.on_hold(request)
    status = bytearray(answer.status)
    left = [place for place, each in enumerate(status) if each == _OK]
    for number in count():
        if not left:
            break
        record = record_id(hold_id_of(request), number)
        expect = step_of(
            request,
            f"expect {number}",
            len(left),
            kind=Kind.EXPECT,
            sku=column_of(request, "sku")[left],
            location=destination,
            quantity=column_of(request, "quantity")[left],
            value=expected_at_ms,
            **on(record),
        )
        _, told = await router.submit(expect)
        for place, each in zip(left, told.status, strict=True):
            status[place] = each
        # A record that is closed already: the next one.
        left = [place for place in left if status[place] == Status.HOLD_NOT_PENDING]
    await _take_back(router, request, bytes(status), answer.status)
    return shard, replace(answer, status=bytes(status))


async def _take_back(router: Router, request: Request, expected: bytes, handed: bytes) -> None:
    """Take back what was handed over and could not be expected."""
    places = [
        place
        for place, (there, here) in enumerate(zip(expected, handed, strict=True))
        if there != _OK and here == _OK
    ]
    if places:
        columns = {name: column[places] for name, column in request.columns.items()}
        columns["kind"] = np.full(len(places), Kind.UNFULFIL, np.uint8)
        await router.on_hold(step_of(request, "take back", len(places), **columns))


@in_doubt_half_way
async def receive(router: Router, request: Request) -> Told:
    """Take in what arrived of a transfer; `request` is a RECEIVE against the transfer's id.

    Each line goes to the record that has some of it outstanding, or to the last one as a surplus. Where
    its shard has none, since nothing was sent to it, the first one is opened there, of nothing.
    """
    opened, named = await _of_records(router, request)
    if opened is not None:
        await router.submit(opened)
    return await router.submit(named)


@in_doubt_half_way
async def lose(router: Router, request: Request) -> Told:
    """Give up what is on its way: all of it, or lines; `request` is a CANCEL_INCOMING as `receive`."""
    if request.lines == 1 and not column_of(request, "quantity")[0]:
        async with router.alone([_key(request)], "lose", request) as begin:
            await begin()
            return await _lose_all(router, request)
    _, named = await _of_records(router, request)
    return await router.on_hold(named)


async def _lose_all(router: Router, request: Request) -> Told:
    """Give up all that is on its way, by one request to each shard of the destination.

    Where these are several, one may have an earlier record open still when another has closed its
    part. Each is asked about all that are open, whether it has some of them or not, and remembers
    what it has said: so a repeat gives up nothing that was sent since.
    """
    # The place is in the request only to find the records by.
    location = int(column_of(request, "location")[0])
    columns = {name: request.columns[name] for name in request.columns if name != "location"}
    records = await _records(router, hold_id_of(request), location)
    numbers = [n for n, record in enumerate(records) if any(map(_is_open, record.lines))]
    numbers = numbers or [max(len(records) - 1, 0)]
    columns = {name: column.repeat(len(numbers)) for name, column in columns.items()}
    named = _with_records(request, numbers, columns)
    told = await router.on_each(named, location)
    words = [
        (_SAID.index(Status(status)) if status in _SAID else -1, shard, place)
        for shard, answer in told.items()
        for place, status in enumerate(answer.status)
    ]
    _, shard, place = min(words)
    answer = told[shard]
    available = answer.available[8 * place :][:8]
    return shard, replace(answer, status=answer.status[place:][:1], available=available)


async def look_up(
    router: Router, transfer_id: bytes, source: int, destination: int
) -> tuple[Hold | None, list[Incoming]]:
    """A transfer's order and its records; 0 for a location that is not known."""
    hold = await router.hold(transfer_id, source)
    return hold, await _records(router, transfer_id, destination, sure=False)


async def _of_records(router: Router, request: Request) -> tuple[Request | None, Request]:
    """A request whose lines name a transfer, made to name its records, and one that opens those it lacks."""
    location = int(column_of(request, "location")[0])
    records = await _records(router, hold_id_of(request), location)
    numbers: list[int] = []
    missing: dict[int, int] = {}  # a SKU of each shard that has no record
    for sku in column_of(request, "sku").tolist():
        shard = router.shard_of(sku, location)
        there = {n: each for n, each in enumerate(records) if _is_at(router, shard, each)}
        numbers.append(_record_of(there, sku))
        if not there:
            missing.setdefault(shard, sku)
    opened = None
    if records and missing:
        skus = sorted(missing.values())
        opened = step_of(
            request,
            "open",
            2 * len(skus),
            kind=[Kind.EXPECT] * len(skus) + [Kind.CANCEL_INCOMING] * len(skus),
            sku=skus * 2,
            location=location,
            quantity=1,
            **on(record_id(hold_id_of(request), 0)),
        )
    return opened, _with_records(request, numbers, request.columns)


def _is_at(router: Router, shard: int, record: Incoming) -> bool:
    """Whether a shard has a part of a record."""
    return any(router.shard_of(line.sku, line.location) == shard for line in record.lines)


def _record_of(records: Mapping[int, Incoming], sku: int) -> int:
    """The number of the record that has some of a SKU outstanding, or else of the last one."""
    for number, record in records.items():
        if any(line.sku == sku and _is_open(line) for line in record.lines):
            return number
    return max(records, default=0)


def _is_open(line: IncomingLine) -> bool:
    return line.outstanding > 0


def _with_records(
    request: Request, numbers: Sequence[int], columns: dict[str, np.ndarray]
) -> Request:
    """The request, of the same id and digest, with its lines on records by their numbers."""
    transfer_id = hold_id_of(request)
    pairs = [on(record_id(transfer_id, number)) for number in numbers]
    halves = {name: np.array([pair[name] for pair in pairs]) for name in ("hold_hi", "hold_lo")}
    return request.with_lines(len(numbers), columns | halves)


async def _records(
    router: Router, transfer_id: bytes, destination: int, *, sure: bool = True
) -> list[Incoming]:
    """A transfer's records, in order, up to the first that is not remembered.

    One that is closed is, for as many orders and records as a shard remembers after their end.
    """
    found: list[Incoming] = []
    for number in count():
        record = await router.incoming(record_id(transfer_id, number), destination, sure=sure)
        if record is None:
            break
        found.append(record)
    return found


OPERATIONS: Final[Mapping[str, Operation]] = {"ship": _ship, "lose": _lose_all}
"""What a gateway finishes that has begun: see `Router`."""

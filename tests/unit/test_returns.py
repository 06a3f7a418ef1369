"""Goods that come back, and exchanges, over two shards: all of it or nothing, whenever the router dies."""

import os
from collections.abc import Awaitable
from contextlib import suppress

import numpy as np
import pytest

from actors.router import Router
from engine import limits
from engine.operations import Answer, Disposition, Flag, Kind, Request
from engine.status import Status
from engine.views import HoldState
from tests.unit.test_router import MAP, SPLIT, TTL, Town, call, on, order, town
from tests.unit.test_spanning import (
    HELD,
    NEW,
    OP,
    Died,
    Mortal,
    Operation,
    channel_rules,
    check_deaths,
    dies,
    hold_five,
    state_of,
)

__all__ = ["town"]

LINKED = Status.LINKED_LINE_REFUSED
RESTOCK, QUALITY, DAMAGED = Disposition.RESTOCK, Disposition.QUALITY_CONTROL, Disposition.DAMAGED


# --- returns --------------------------------------------------------------------------------------


async def handed_over(town: Town) -> None:
    """3 of SKU 1 at location 1 and 2 of SKU 2 at location 2 were handed over."""
    await hold_five(town)
    for kind in (Kind.COMMIT, Kind.FULFIL):
        _, answer = await town.router.on_hold(call(os.urandom(16), kind, HELD))
        assert answer.status == b"\0"


def a_return(
    lines: list[tuple[int, int, int]], sold_at: int = 0, against: bytes = HELD, op_id: bytes = OP
) -> Operation:
    skus, locations, quantities = zip(*lines, strict=True)
    columns = {"sku": skus, "location": locations, "quantity": quantities}
    request = call(op_id, Kind.RETURN, against, len(lines), **columns)
    return lambda router: router.returned(request, [sold_at] * len(lines))


@pytest.mark.parametrize("sold_at", [0, 1])
async def test_goods_come_back_to_another_shard(sold_at: int) -> None:
    town, answer = await check_deaths(handed_over, a_return([(1, 4, 2)], sold_at))
    assert answer.status == b"\0"
    assert np.frombuffer(answer.available, "<i8").tolist() == [12]
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert [(line.fulfilled, line.returned) for line in hold.lines] == [(3, 2), (2, 0)]
    assert await town.available(1, 1) == 7


async def test_never_more_comes_back_than_went_out_wherever_to() -> None:
    lines = [(1, 1, 1), (1, 4, 2), (1, 2, 1), (2, 1, 1), (3, 3, 1), (2, 2, 1)]
    town, answer = await check_deaths(handed_over, a_return(lines))
    exceeds, unknown = Status.EXCEEDS_HOLD, Status.NOT_IN_HOLD
    assert list(answer.status) == [0, 0, exceeds, 0, unknown, 0]
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert [(line.fulfilled, line.returned) for line in hold.lines] == [(3, 3), (2, 2)]


async def test_lines_that_stand_alone_and_come_back_to_one_shard_all_come_in() -> None:
    town, answer = await check_deaths(handed_over, a_return([(1, 4, 1), (1, 4, 2)]))
    assert answer.status == b"\0\0"
    assert await notes_of(town) == [3, 0]
    assert await town.available(1, 4) == 13


async def handed_over_by_two(town: Town) -> None:
    """5 of SKU 1 were handed over: 3 at location 1, on shard 0, and 2 at location 2, on shard 1."""
    await town.router.reserve(order(HELD, [(1, 1), (1, 2)], [3, 2]))
    for kind in (Kind.COMMIT, Kind.FULFIL):
        _, answer = await town.router.on_hold(call(os.urandom(16), kind, HELD))
        assert answer.status == b"\0"


@pytest.mark.parametrize("to", [3, 4, SPLIT])
async def test_goods_that_several_shards_handed_over_come_back_in_one_line(to: int) -> None:
    town, answer = await check_deaths(handed_over_by_two, a_return([(1, to, 4)]))
    assert answer.status == b"\0"
    assert sum(await notes_of(town)) == 4
    assert await town.available(1, to) == 14
    _, answer = await a_return([(1, to, 2)], op_id=NEW)(town.router)
    assert list(answer.status) == [Status.EXCEEDS_HOLD]
    _, answer = await a_return([(1, to, 1)], op_id=os.urandom(16))(town.router)
    assert answer.status == b"\0"
    assert await notes_of(town) == [3, 2]


# At location 2 they are said to be of the shard that they come back to, and one call judges that.
@pytest.mark.parametrize(("sold_at", "calls"), [(0, 2), (1, 2), (2, 1)])
async def test_more_than_several_shards_handed_over_does_not_come_back(
    sold_at: int, calls: int
) -> None:
    operation = a_return([(1, 4, 6)], sold_at)
    town, answer = await check_deaths(handed_over_by_two, operation, at_least=calls)
    assert list(answer.status) == [Status.EXCEEDS_HOLD]
    assert await notes_of(town) == [0, 0]
    assert await town.available(1, 4) == 10


async def test_what_nobody_sold_does_not_come_back(town: Town) -> None:
    await handed_over(town)
    _, answer = await a_return([(1, 4, 2)], against=NEW)(town.router)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    _, answer = await a_return([(1, 4, 2)], sold_at=2, op_id=HELD[:15] + b"x")(town.router)
    assert list(answer.status) == [Status.NOT_IN_HOLD]
    assert await town.available(1, 4) == 10


async def test_what_a_shard_has_refused_by_itself_stays_refused_by_a_gateway(town: Town) -> None:
    """Its own server judges what is all its own; under another id it would judge anew, and otherwise."""
    itself = Router({0: town.shards[0]}, lambda: MAP)
    back = a_return([(1, 1, 2)], sold_at=1, against=NEW)
    _, answer = await back(itself)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    sale = call(os.urandom(16), Kind.SALE, NEW, sku=1, location=1, quantity=5)
    assert not any((await town.shards[0].submit(sale)).status)
    for router in (town.router, itself):
        _, answer = await back(router)
        assert list(answer.status) == [Status.UNKNOWN_HOLD]
    assert await town.available(1, 1) == 5
    for op_id in (HELD, HELD):
        _, answer = await a_return([(1, 1, 2)], sold_at=1, against=NEW, op_id=op_id)(town.router)
        assert not any(answer.status)
    assert await town.available(1, 1) == 7


async def test_the_answer_to_another_part_of_a_return_is_not_told(town: Town) -> None:
    """Whoever asks a shard by itself first has that judge all lines, also what a gateway sends elsewhere."""
    columns = {"sku": 1, "location": [2, 1, 1], "quantity": [2, 2, 2 * 10**9]}
    back = call(OP, Kind.RETURN, bytes(16), 3, **columns)
    _, answer = await Router({0: town.shards[0]}, lambda: MAP).returned(back, [0, 0, 0])
    assert list(answer.status) == [Status.WRONG_SHARD, Status.OK, Status.QUANTITY_TOO_LARGE]
    _, answer = await town.router.returned(back, [0, 0, 0])
    assert list(answer.status) == [Status.OK, Status.OP_ID_REUSED, Status.OP_ID_REUSED]
    assert [await town.available(1, location) for location in (1, 2)] == [12, 12]


async def test_what_cannot_come_in_is_not_noted_as_returned(town: Town) -> None:
    await handed_over(town)
    for wrong, status in (
        ({"value": 3}, Status.INVALID_DISPOSITION),
        ({"occurred_at_ns": -1}, Status.INVALID_MOMENT),
        ({"location": 99}, Status.UNKNOWN_LOCATION),
    ):
        columns = {"sku": 1, "location": 4, "quantity": 1} | wrong
        request = call(os.urandom(16), Kind.RETURN, HELD, **columns)
        _, answer = await town.router.returned(request, [0])
        assert list(answer.status) == [status]
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert [line.returned for line in hold.lines] == [0, 0]


async def full(town: Town, sku: int, location: int) -> None:
    """A cell has all that it can have."""
    shard = town.shards[MAP.shard_of(sku, location)]
    shard.machine._book.cells[sku, location].on_hand = limits.MAX_BALANCE


async def notes_of(town: Town, hold_id: bytes = HELD) -> list[int]:
    """What is noted to be back of each line of a hold."""
    hold = await town.router.hold(hold_id)
    assert hold is not None
    return [line.returned for line in hold.lines]


async def test_what_finds_no_room_is_not_noted_as_returned_elsewhere() -> None:
    """Also when there is room still when it is asked for."""

    async def setting(town: Town) -> None:
        await handed_over(town)
        await full(town, 1, 4)

    town, answer = await check_deaths(setting, a_return([(1, 4, 2)]), at_least=1)
    assert list(answer.status) == [Status.BALANCE_LIMIT]
    assert await notes_of(town) == [0, 0]

    town = await Town().stocked()
    await handed_over(town)
    first = town.shards[0]
    submit = first.submit
    noted = []

    async def meddle(request: Request) -> Answer:
        answer = await submit(request)
        if request.columns["kind"][0] == Kind.CLAIM_RETURN:
            await full(town, 1, 4)
            noted.append(await notes_of(town))
        return answer

    first.submit = meddle  # type: ignore[method-assign]
    for _ in range(2):
        _, answer = await a_return([(1, 4, 2)])(town.router)
        assert list(answer.status) == [Status.BALANCE_LIMIT]
        assert await notes_of(town) == [0, 0]
    assert noted[:2] == [[2, 0], [0, 0]]


def together(
    lines: list[tuple[int, int, int]], op_id: bytes = OP, against: bytes = HELD
) -> Operation:
    """A return of linked lines."""
    skus, locations, quantities = zip(*lines, strict=True)
    flags = [Flag.LINKED] * (len(lines) - 1) + [0]
    columns = {"sku": skus, "location": locations, "quantity": quantities, "flags": flags}
    request = call(op_id, Kind.RETURN, against, len(lines), **columns)
    return lambda router: router.returned(request, [0] * len(lines))


@pytest.mark.parametrize("to", [1, 2, 3, 4, SPLIT])
async def test_what_is_linked_comes_back_together_wherever_to(to: int) -> None:
    town, answer = await check_deaths(handed_over, together([(1, to, 3), (2, to, 2)]), 1)
    assert answer.status == b"\0\0"
    assert await notes_of(town) == [3, 2]
    expected = {1: 10 + 3 - 3 * (to == 1), 2: 10 + 2 - 2 * (to == 2)}
    assert {sku: await town.available(sku, to) for sku in (1, 2)} == expected


@pytest.mark.parametrize("to", [1, 2, 3, 4, SPLIT])
async def test_of_what_is_linked_nothing_comes_back_when_a_part_cannot(to: int) -> None:
    for lines, status in (
        ([(1, to, 3), (2, to, 3)], [LINKED, Status.EXCEEDS_HOLD]),
        ([(3, to, 1), (2, to, 2)], [Status.NOT_IN_HOLD, LINKED]),
    ):
        town, answer = await check_deaths(handed_over, together(lines), 1)
        assert list(answer.status) == status
        assert await notes_of(town) == [0, 0]
        assert town.counted("on_hand") == 640 - 5


# --- exchanges ------------------------------------------------------------------------------------

Line = tuple[int, int, int]  # SKU, location, quantity


def an_exchange(
    back: list[Line],
    out: list[Line],
    *,
    against: bytes = b"",
    disposition: int = RESTOCK,
    flags: int = 0,
    sold_at: int = 0,
    op_id: bytes = OP,
    channel: int = 0,
    moment_ns: int = 0,
) -> Operation:
    """`moment_ns`: when the first line came back."""
    skus, locations, quantities = zip(*back, *out, strict=True)
    lines, returns = len(skus), len(back)
    is_back = np.arange(lines) < returns
    columns = {
        "kind": np.where(is_back, Kind.RETURN, Kind.RESERVE),
        "flags": np.where(np.arange(lines) < lines - 1, Flag.LINKED, 0)
        | np.where(is_back, 0, flags),
        "value": np.where(is_back, disposition, TTL),
        "channel": np.where(is_back, 0, channel),
        "occurred_at_ns": np.where(np.arange(lines) == 0, moment_ns, 0),
    }
    for name, half in on(against).items() if against else ():
        columns[name] = np.where(is_back, half, np.uint64(0))
    request = Request.of(
        op_id,
        lines,
        want_available=True,
        sku=skus,
        location=locations,
        quantity=quantities,
        **columns,
    )
    return lambda router: router.exchange(request, [sold_at] * lines)


async def sold_and_sold_out(town: Town) -> None:
    """All of SKU 1 at location 1 and of SKU 2 at location 2 is handed over or held."""
    await handed_over(town)
    for sku, op_id in ((1, b"a" * 16), (2, b"b" * 16)):
        await town.router.reserve(order(op_id, [(sku, sku)], await town.available(sku, sku)))


async def buys_all(town: Town) -> None:
    """Somebody takes all that there is; nothing was sold twice before."""
    assert least_available(town) >= 0
    for shard in town.shards:
        for cell, found in shard.machine.cells.items():
            if found.available:
                taken = order(os.urandom(16), [cell], found.available)
                assert not any((await shard.submit(taken)).status)


def least_available(town: Town) -> int:
    cells = (cell for shard in town.shards for cell in shard.machine.cells.values())
    return min(cell.available for cell in cells)


# What comes back, what is held: neither on one shard alone, on both, the same cells or not.
EXCHANGES: list[tuple[list[Line], list[Line]]] = [
    ([(1, 1, 2)], [(3, 2, 4)]),
    ([(1, 1, 2)], [(3, 1, 1), (3, 2, 4)]),
    ([(1, 1, 2), (2, 2, 1)], [(3, 2, 4)]),
    ([(1, 1, 2)], [(1, 1, 2), (3, 2, 4)]),
    ([(1, 1, 3), (2, 2, 2)], [(1, 1, 2), (2, 2, 1)]),
    ([(1, 1, 1), (1, 1, 2), (2, 2, 2)], [(1, 1, 1), (2, 2, 1), (1, 1, 2), (3, 1, 1)]),
    ([(1, 4, 2)], [(3, 4, 1)]),
]


def units(lines: list[Line]) -> int:
    return sum(quantity for *_, quantity in lines)


@pytest.mark.parametrize(("back", "out"), EXCHANGES)
@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
@pytest.mark.parametrize("against", [b"", HELD])
async def test_goods_are_exchanged_over_two_shards(
    back: list[Line], out: list[Line], flags: int, against: bytes
) -> None:
    """Also when the goods that come back are the last ones, and whoever handed them over."""
    operation = an_exchange(back, out, flags=flags, against=against)
    town, answer = await check_deaths(sold_and_sold_out, operation, 1)
    assert not any(answer.status)
    assert town.counted("on_hand") == 640 - 5 + units(back)
    hold = await town.router.hold(OP)
    assert hold is not None
    held = sorted((line.sku, line.location, line.pending or line.committed) for line in hold.lines)
    assert held == sorted(out)
    assert hold.state == (HoldState.COMMITTED if flags else HoldState.PENDING)
    assert sum(await notes_of(town)) == (units(back) if against else 0)
    assert least_available(town) >= 0


REFUSED: list[tuple[list[Line], list[Line], list[Status]]] = [
    ([(1, 1, 2)], [(3, 2, 11)], [LINKED, Status.INSUFFICIENT_STOCK]),
    ([(1, 1, 2)], [(1, 1, 3), (3, 2, 4)], [LINKED, Status.INSUFFICIENT_STOCK, LINKED]),
    ([(1, 1, 2)], [(1, 1, 1), (3, 2, 11)], [LINKED, LINKED, Status.INSUFFICIENT_STOCK]),
    (
        [(1, 1, 3), (2, 2, 2)],
        [(1, 1, 2), (2, 2, 3)],
        [LINKED, LINKED, LINKED, Status.INSUFFICIENT_STOCK],
    ),
    ([(1, 1, 4)], [(3, 2, 1)], [Status.EXCEEDS_HOLD, LINKED]),
    ([(1, 1, 1), (3, 2, 1)], [(3, 2, 1)], [LINKED, Status.NOT_IN_HOLD, LINKED]),
    ([(1, 1, 1), (99, 2, 1)], [(3, 2, 1)], [LINKED, Status.UNKNOWN_SKU, LINKED]),
    ([(1, 1, 1)], [(3, 2, 0)], [LINKED, Status.INVALID_QUANTITY]),
    ([(1, 1, 1)], [(3, 1, 1), (99, 2, 1)], [LINKED, LINKED, Status.UNKNOWN_SKU]),
    ([(1, 1, 0)], [(1, 1, 1), (3, 2, 1)], [Status.INVALID_QUANTITY, LINKED, LINKED]),
]


@pytest.mark.parametrize(("back", "out", "status"), REFUSED)
@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
async def test_an_exchange_that_is_refused_changes_nothing(
    back: list[Line], out: list[Line], status: list[Status], flags: int
) -> None:
    operation = an_exchange(back, out, flags=flags, against=HELD)
    town, answer = await check_deaths(sold_and_sold_out, operation, 1)
    assert list(answer.status) == status
    assert town.counted("on_hand") == 640 - 5
    assert (town.counted("committed"), town.reserved) == (0, 15)
    assert await notes_of(town) == [0, 0]


@pytest.mark.parametrize("disposition", Disposition)
@pytest.mark.parametrize("kind", [Kind.RETURN, Kind.RESERVE])
@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
async def test_what_is_refused_under_the_hands_of_an_exchange_is_undone(
    disposition: Disposition, kind: Kind, flags: int
) -> None:
    """The last step finds that there is no room, or no stock, any more."""

    async def meddling(town: Town) -> None:
        await handed_over(town)
        shard = town.shards[1]
        submit, seen = shard.submit, 0

        async def meddle(request: Request) -> Answer:
            nonlocal seen
            kinds = request.columns.get("kind", [0])
            if kinds[0] == Kind.RETURN and len(kinds) < 4:
                seen += 1  # the first one asks only
                if seen == 2 and kind == Kind.RETURN:
                    shard.machine._book.cells[2, 2].on_hand = limits.MAX_BALANCE
                if seen == 2 and kind == Kind.RESERVE:
                    shard.machine._book.cells[2, 2].safety_stock = 100
            return await submit(request)

        shard.submit = meddle  # type: ignore[method-assign]

    back = [(1, 1, 3), (2, 2, 2)]
    out = [(1, 1, 2), (2, 2, 1)] if disposition == RESTOCK else [(3, 1, 2), (2, 2, 1)]
    if disposition != RESTOCK and kind == Kind.RESERVE:
        return  # nothing is held in the last step
    operation = an_exchange(back, out, flags=flags, against=HELD, disposition=disposition)
    town = await Town().stocked()
    await meddling(town)
    on_hand = town.shards[0].machine.cells
    for _ in range(2):
        _, answer = await operation(town.router)
        refusal = Status.BALANCE_LIMIT if kind == Kind.RETURN else Status.INSUFFICIENT_STOCK
        assert refusal in answer.status
        assert set(answer.status) == {refusal, LINKED}
        assert town.shards[0].machine.cells == on_hand
        assert (town.counted("committed"), town.reserved) == (0, 0)
        assert (town.counted("damaged"), town.counted("quality_control")) == (0, 0)
        assert await notes_of(town) == [0, 0]


@pytest.mark.parametrize("disposition", Disposition)
async def test_what_a_count_has_seen_is_not_taken_out_of_it_when_an_exchange_is_undone(
    town: Town, disposition: Disposition
) -> None:
    """The goods came back before the newest count of their cell, so they moved nothing on the shelf."""
    await handed_over(town)
    first, second = town.shards
    count = Request.of(os.urandom(16), 1, kind=Kind.COUNT, sku=1, location=1, quantity=9)
    assert not any((await first.submit(count)).status)
    before = first.machine.cells
    submit, seen = second.submit, 0

    async def meddle(request: Request) -> Answer:
        nonlocal seen
        if request.columns.get("kind", [0])[0] == Kind.RETURN:
            seen += 1  # the first one asks only
            if seen == 2:
                await full(town, 2, 2)
        return await submit(request)

    second.submit = meddle  # type: ignore[method-assign]
    operation = an_exchange(
        [(1, 1, 3), (2, 2, 2)],
        [(3, 1, 1)],
        against=HELD,
        disposition=disposition,
        moment_ns=first.now_ns - 2,
    )
    for _ in range(2):
        _, answer = await operation(town.router)
        assert Status.BALANCE_LIMIT in answer.status
        assert seen >= 2
        assert first.machine.cells == before
        assert await notes_of(town) == [0, 0]


@pytest.mark.parametrize(("back", "out"), EXCHANGES)
@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
async def test_nothing_is_sold_twice_between_the_steps_of_an_exchange(
    back: list[Line], out: list[Line], flags: int
) -> None:
    """The router dies after any step, somebody takes all that there is, and it is repeated."""
    operation = an_exchange(back, out, flags=flags, against=HELD)
    ends = set()
    for lives in range(20):
        town = await Town().stocked()
        await sold_and_sold_out(town)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        is_over = False
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
            is_over = True
        await buys_all(town)
        _, answer = await operation(town.router)
        _, again = await operation(town.router)
        assert again.status == answer.status
        assert least_available(town) >= 0
        is_done = not any(answer.status)
        assert town.counted("on_hand") == 640 - 5 + units(back) * is_done
        assert sum(await notes_of(town)) == units(back) * is_done
        hold = await town.router.hold(OP)
        if hold is not None:
            held = sum(line.pending + line.committed for line in hold.lines)
            assert held == units(out) * is_done
        ends.add(is_done)
        if is_over:
            break
    assert True in ends


@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
async def test_lines_of_one_cell_bring_no_more_in_one_step_than_is_held_of_it(flags: int) -> None:
    """Others would buy the rest, and it would have to leave again when another shard refuses."""
    operation = an_exchange(
        [(1, 1, 1), (1, 1, 2), (2, 2, 1)], [(1, 1, 2), (2, 2, 2)], flags=flags, against=HELD
    )
    is_refused = False
    for lives in range(20):
        town = await Town().stocked()
        await handed_over(town)
        await town.router.reserve(
            order(b"a" * 16, [(1, 1), (2, 2)], [7, 7])
        )  # leaves a unit of SKU 2
        is_dead = await dies(town, operation, lives)
        await buys_all(town)
        _, answer = await operation(town.router)
        is_refused |= any(answer.status)
        assert least_available(town) >= 0
        if not is_dead:
            assert is_refused
            return
    raise AssertionError("it takes ever more calls")


async def test_an_exchange_that_is_repeated_late_is_done_or_is_not() -> None:
    operation = an_exchange(
        [(1, 1, 2)], [(1, 1, 2), (3, 2, 4)], flags=Flag.COMMIT_NOW, against=HELD
    )
    for lives in range(20):
        town = await Town().stocked()
        await handed_over(town)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
            return
        for shard in town.shards:
            shard.now_ns += 2 * TTL * limits.NS_PER_MS
        _, answer = await operation(town.router)
        assert not any(answer.status)
        assert (town.counted("committed"), town.reserved) == (6, 0)


@pytest.mark.parametrize("channel", [0, 1])
async def test_an_exchange_that_is_repeated_late_takes_nothing_that_is_kept_from_its_channel(
    town: Town, channel: int
) -> None:
    """It was held when its router died; then it ran out, and some of it was sold."""
    channel_rules(town, (0, 6))
    operation = an_exchange(
        [(1, 1, 2)],
        [(3, 1, 2), (3, 2, 4)],
        flags=Flag.COMMIT_NOW,
        against=HELD,
        channel=channel,
    )
    await handed_over(town)
    for lives in range(20):
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
        if town.reserved == 6:
            break
    assert town.reserved == 6
    for shard in town.shards:
        shard.now_ns += 2 * TTL * limits.NS_PER_MS
    sale = Request.of(os.urandom(16), 1, kind=Kind.SALE, sku=3, location=2, quantity=2)
    await town.router.submit(sale)
    _, answer = await operation(town.router)
    assert any(answer.status) == bool(channel)
    assert (town.counted("committed"), town.reserved) == (0 if channel else 6, 0)


def brought_back(town: Town, shard: int, units: int) -> Awaitable[Answer]:
    """Another line has 2 of SKU 1 noted as returned; or has not, after all."""
    columns = {"sku": 1, "quantity": units}
    return town.shards[shard].submit(call(os.urandom(16), Kind.CLAIM_RETURN, HELD, **columns))


OF_TWO_PARTS = {
    "return": a_return([(1, 4, 4)]),
    "linked returns": together([(1, 4, 4), (1, 3, 1)]),
    "exchange": an_exchange([(1, 4, 4)], [(3, 2, 1)], against=HELD),
    "exchange of the same": an_exchange([(1, 4, 4)], [(1, 4, 1)], against=HELD),
    "paid exchange": an_exchange(
        [(1, 4, 4)], [(1, 4, 1), (3, 1, 2)], against=HELD, flags=Flag.COMMIT_NOW
    ),
}


@pytest.mark.parametrize("operation", OF_TWO_PARTS.values(), ids=OF_TWO_PARTS.keys())
@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("units", [1, 2])
async def test_what_was_refused_stays_refused_when_less_is_back_than_it_seemed(
    operation: Operation, shard: int, units: int
) -> None:
    """Somebody brings some of it back at the same time, and is refused himself after that."""
    town = await Town().stocked()
    await handed_over_by_two(town)
    assert not any((await brought_back(town, shard, 2)).status)
    _, answer = await operation(town.router)
    assert Status.EXCEEDS_HOLD in answer.status
    assert not any((await brought_back(town, shard, -units)).status)
    before, notes = state_of(town), await notes_of(town)
    for _ in range(2):
        _, again = await operation(town.router)
        assert again.status == answer.status
        assert await notes_of(town) == notes
        assert state_of(town) == before


async def test_what_was_refused_stays_refused_when_the_goods_go_out_elsewhere() -> None:
    """A part of the order that had not left moves to another shard, and leaves from there."""
    for operation in (a_return([(2, 4, 2)]), an_exchange([(2, 4, 2)], [(2, 4, 1)], against=HELD)):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 2]))
        _, answer = await operation(town.router)
        assert any(answer.status)
        move = call(os.urandom(16), Kind.MOVE, HELD, sku=2, location=2, quantity=2, value=1)
        assert not any((await town.router.move(move))[1].status)
        for kind in (Kind.COMMIT, Kind.FULFIL):
            _, done = await town.router.on_hold(call(os.urandom(16), kind, HELD))
            assert not any(done.status)
        before = state_of(town)
        _, again = await operation(town.router)
        assert again.status == answer.status
        assert state_of(town) == before


async def test_two_attempts_at_once_claim_the_same_of_each_shard() -> None:
    """Both look at what is still out, and somebody brings some back in between."""
    operation = OF_TWO_PARTS["return"]
    town = await Town().stocked()
    await handed_over_by_two(town)
    first = town.shards[0]
    submit = first.submit

    async def meddle(request: Request) -> Answer:
        if (
            Kind.CLAIM_RETURN in request.columns.get("kind", ())
            and request.columns["quantity"][0] != 4
        ):
            first.submit = submit  # type: ignore[method-assign]
            assert not any((await brought_back(town, 0, 1)).status)
            # By another gateway; in one they take turns.
            _, other = await operation(Router(dict(enumerate(town.shards)), lambda: MAP))
            assert not any(other.status)
        return await submit(request)

    first.submit = meddle  # type: ignore[method-assign]
    _, answer = await operation(town.router)
    assert not any(answer.status)
    assert await notes_of(town) == [3, 2]
    assert await town.available(1, 4) == 14


async def test_an_exchange_of_one_shard_is_one_call(town: Town) -> None:
    """Its goods were handed over there, as it says, or nobody knows by whom."""
    await handed_over(town)
    for shard in town.shards:
        shard.seen.clear()
    for against, sold_at in ((b"", 0), (HELD, 1)):
        operation = an_exchange(
            [(1, 1, 1)], [(3, 1, 1)], against=against, sold_at=sold_at, op_id=os.urandom(16)
        )
        assert not any((await operation(town.router))[1].status)
    assert [len(shard.seen) for shard in town.shards] == [2, 0]


async def test_the_id_of_an_exchange_is_not_used_for_other_content(town: Town) -> None:
    assert not any((await an_exchange([(1, 1, 1)], [(3, 2, 1)])(town.router))[1].status)
    _, answer = await an_exchange([(1, 1, 1)], [(3, 2, 2)])(town.router)
    assert set(answer.status) == {Status.OP_ID_REUSED, LINKED}
    assert (town.counted("on_hand"), town.reserved) == (641, 1)

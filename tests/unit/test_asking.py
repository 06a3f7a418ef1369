"""Calls on parts of a hold over two shards: all of them or none, whenever the router dies."""

from collections.abc import Awaitable

import pytest

from actors.router import Router
from engine.operations import PART_KINDS, Flag, Kind
from engine.status import Status
from tests.unit.test_router import Town, call
from tests.unit.test_spanning import HELD, OP, Operation, Told, check_deaths, hold_five

BEFORE = {
    Kind.COMMIT: [],
    Kind.RELEASE: [],
    Kind.FULFIL: [Kind.COMMIT],
    Kind.CANCEL: [Kind.COMMIT],
    Kind.UNFULFIL: [Kind.COMMIT, Kind.FULFIL],
}


@pytest.mark.parametrize("kind", PART_KINDS)
@pytest.mark.parametrize(("most", "is_done"), [(2, True), (3, False)])
async def test_parts_of_a_hold_on_two_shards_are_called_on_together(
    kind: Kind, most: int, is_done: bool
) -> None:
    """The hold has 3 of SKU 1 on one of them, and 2 of SKU 2 on the other."""

    async def setting(town: Town) -> None:
        await hold_five(town)
        for number, each in enumerate(BEFORE[kind]):
            _, answer = await town.router.on_hold(call(bytes([9, number] * 8), each, HELD))
            assert answer.status == b"\0"

    def operation(router: Router) -> Awaitable[Told]:
        cells = {"sku": [1, 2], "location": [1, 2], "quantity": [2, most]}
        return router.on_hold(call(OP, kind, HELD, 2, flags=[Flag.LINKED, 0], **cells))

    before = await Town().stocked()
    await setting(before)
    town, answer = await check_deaths(setting, operation, at_least=2)
    if is_done:
        assert answer.status == b"\0\0"
        assert [each.machine.cells for each in town.shards] != [
            each.machine.cells for each in before.shards
        ]
    else:
        assert list(answer.status) == [Status.LINKED_LINE_REFUSED, Status.EXCEEDS_HOLD]
        assert [each.machine.cells for each in town.shards] == [
            each.machine.cells for each in before.shards
        ]


async def test_the_rest_is_released_when_the_parts_are_committed_and_only_then() -> None:
    def committing(most: int) -> Operation:
        cells = {"sku": [1, 2], "location": [1, 2], "quantity": [2, most]}
        flags = [Flag.LINKED, Flag.RELEASE_REST]
        return lambda router: router.on_hold(call(OP, Kind.COMMIT, HELD, 2, flags=flags, **cells))

    for most, left in ((3, (5, 0)), (1, (0, 3))):
        town, _ = await check_deaths(hold_five, committing(most))
        assert (town.reserved, town.counted("committed")) == left

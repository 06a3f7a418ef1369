"""The rules of moves that are linked: all or none. Both machines answer each (see `Shop`)."""

import pytest

from engine import limits
from engine.operations import Flag
from engine.reference import Line
from engine.status import Status
from tests.property.histories import BERLIN, BOSTON, UNKNOWN, linked
from tests.property.shop import FAR, JAM, TEA, Shop, commit, move, receive, release, reserve

REFUSED = Status.LINKED_LINE_REFUSED
FAR_JAM = (2, BOSTON)


def an_order() -> Shop:
    """An order of three teas and two jams; two teas and one jam fit where it could go."""
    shop = Shop(tea=5, jam=5)
    shop.does(receive(2, FAR), receive(1, FAR_JAM))
    shop.holds("order", reserve(3), reserve(2, JAM))
    return shop


def part(cell: tuple[int, int], units: int, to: int = BOSTON, name: str = "order") -> Line:
    return move(name, to, cell, units)


def test_linked_moves_are_done_together() -> None:
    shop = an_order()
    shop.does(*linked([part(TEA, 2), part(JAM, 1)]))
    lines = [(each.sku, each.location, each.pending) for each in shop.hold("order").lines]
    assert lines == [(1, BERLIN, 1), (2, BERLIN, 1), (1, BOSTON, 2), (2, BOSTON, 1)]
    assert [shop.cell(cell).reserved for cell in (TEA, JAM, FAR, FAR_JAM)] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("lines", "answers"),
    [
        ([part(TEA, 3), part(JAM, 1)], [Status.INSUFFICIENT_STOCK, REFUSED]),
        ([part(TEA, 2), part(JAM, 2)], [REFUSED, Status.INSUFFICIENT_STOCK]),
        ([part(TEA, 2), part(JAM, 3)], [REFUSED, Status.EXCEEDS_HOLD]),
        ([part(TEA, 2), part((3, BERLIN), 1)], [REFUSED, Status.NOT_IN_HOLD]),
        ([part(TEA, 2), part(JAM, 1, UNKNOWN)], [REFUSED, Status.UNKNOWN_LOCATION]),
        ([part(TEA, 2), part(JAM, -1)], [REFUSED, Status.INVALID_QUANTITY]),
        ([part(TEA, 2), part(JAM, 0)], [REFUSED, Status.INVALID_QUANTITY]),
        ([part(TEA, 0), part(JAM, 1)], [Status.INVALID_QUANTITY, REFUSED]),
        ([part(TEA, 1), part(JAM, 1), part(TEA, 1)], [REFUSED, REFUSED, Status.INVALID_FLAGS]),
        ([part((0, 0), 1), part(JAM, 1)], [Status.INVALID_FLAGS, REFUSED]),
        ([part(TEA, 1), part(JAM, 1, name="other")], [REFUSED, Status.INVALID_FLAGS]),
        ([part(TEA, 1), release("order", 1, JAM)], [REFUSED, Status.INVALID_FLAGS]),
        ([part(TEA, 1), part(JAM, 1)._replace(kind=99)], [REFUSED, Status.INVALID_KIND]),
        (
            [part(TEA, 1), part(JAM, 1)._replace(flags=int(Flag.RELEASE_REST))],
            [REFUSED, Status.INVALID_FLAGS],
        ),
        ([part(TEA, 1, name="none"), part(JAM, 1, name="none")], [Status.UNKNOWN_HOLD, REFUSED]),
    ],
)
def test_of_linked_moves_the_first_that_is_refused_says_why(
    lines: list[Line], answers: list[Status]
) -> None:
    shop = an_order()
    before = shop.pair.machine.state_hash
    assert shop.answers(*linked(lines)) == answers
    assert shop.pair.machine.state_hash == before


def test_a_move_that_is_linked_to_nothing_is_refused() -> None:
    shop = an_order()
    dangling = part(TEA, 1)._replace(flags=int(Flag.LINKED))
    assert shop.answer(dangling) is Status.INVALID_FLAGS
    assert shop.answers(part(JAM, 1), dangling) == [Status.OK, Status.INVALID_FLAGS]
    assert shop.answers(dangling, dangling._replace(sku=2)) == [REFUSED, Status.INVALID_FLAGS]


def test_linked_moves_are_of_a_pending_hold() -> None:
    shop = an_order()
    lines = linked([part(TEA, 1), part(JAM, 1)])
    shop.does(commit("order", 2, JAM))
    assert shop.answers(*lines) == [REFUSED, Status.HOLD_NOT_PENDING]
    shop.does(commit("order"))
    assert shop.answers(*lines) == [Status.HOLD_NOT_PENDING, REFUSED]
    shop.holds("late", reserve(1), reserve(1, JAM))
    shop.wait_until(shop.hold("late").deadline_ns + 1)
    lines = linked([part(TEA, 1, name="late"), part(JAM, 1, name="late")])
    assert shop.answers(*lines) == [Status.HOLD_EXPIRED, REFUSED]


def test_the_lines_that_split_off_in_linked_moves_are_summed() -> None:
    most = limits.MAX_HOLD_LINES
    shop = Shop(tea=most, jam=5)
    shop.does(receive(5, FAR), receive(5, FAR_JAM))
    shop.holds("order", reserve(2), reserve(2, JAM), *[reserve(1)] * (most - 3))
    lines = [part(JAM, 1), part(TEA, 1)]
    assert shop.answers(*linked(lines)) == [REFUSED, Status.TOO_MANY_LINES]
    shop.does(*linked([part(JAM, 1), part(TEA, 2)]))
    assert len(shop.hold("order").lines) == most


# --- for a channel --------------------------------------------------------------------------------

# In Berlin two of each are kept from channel 1, and channel 2 does not sell.
CHANNELS = [
    (0, 3, Status.OK),
    (1, 1, Status.OK),
    (1, 2, Status.INSUFFICIENT_STOCK),
    (2, 1, Status.NOT_IN_CHANNEL),
    (3, 1, Status.UNKNOWN_CHANNEL),
    (limits.MAX_CHANNELS, 1, Status.UNKNOWN_CHANNEL),
]


@pytest.mark.parametrize(("channel", "units", "answer"), CHANNELS)
def test_what_moves_takes_no_stock_that_is_kept_from_its_channel(
    channel: int, units: int, answer: Status
) -> None:
    shop = Shop(tea=3, jam=3)
    shop.pair.set_location(BOSTON, buffers=(0, 0, 0))
    shop.does(receive(3, FAR), receive(1, FAR_JAM))
    assert shop.answer(reserve(units, channel=channel)) is answer  # as for a new order
    shop = Shop(tea=3, jam=3)
    shop.pair.set_location(BOSTON, buffers=(0, 0, 0))
    shop.does(receive(3, FAR), receive(1, FAR_JAM))
    shop.holds("order", reserve(3, FAR, channel=1), reserve(1, FAR_JAM, channel=1))
    lines = [
        move("order", BERLIN, FAR_JAM, 1, channel=channel),
        move("order", BERLIN, FAR, units, channel=channel),
    ]
    is_judged_first = answer in (Status.OK, Status.INSUFFICIENT_STOCK)
    both = [answer] * 2 if answer is Status.OK else [REFUSED, answer]
    assert shop.answers(*linked(lines)) == (both if is_judged_first else [answer, REFUSED])
    if answer is not Status.OK:
        assert shop.answer(lines[1]) is answer
        assert [(each.location, each.pending) for each in shop.hold("order").lines] == [
            (BOSTON, 3), (BOSTON, 1),
        ]  # fmt: skip


def test_all_of_a_hold_moves_for_a_channel() -> None:
    shop = Shop(tea=5, jam=3)
    shop.pair.set_location(BOSTON, buffers=(0, 0, 0))
    shop.does(receive(3, FAR), receive(2, FAR_JAM))
    shop.holds("order", reserve(3, FAR), reserve(2, FAR_JAM))
    answers = {
        channel: shop.answer(move("order", BERLIN, channel=channel)) for channel in (1, 2, 3)
    }
    assert answers == {
        1: Status.INSUFFICIENT_STOCK, 2: Status.NOT_IN_CHANNEL, 3: Status.UNKNOWN_CHANNEL,
    }  # fmt: skip
    assert shop.available(TEA) == 5
    shop.does(receive(1, JAM), move("order", BERLIN, channel=1))
    assert (shop.available(TEA), shop.available(JAM)) == (2, 2)

"""In whatever order facts arrive, a cell has what its last count saw and what moved after that."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from engine.operations import Disposition, Kind
from engine.reference import Line
from tests.property.histories import MS
from tests.property.shop import TEA, Shop, adjust, comes_back, count, receive, sale, write_off

MINUTE = 60_000 * MS


class Event(NamedTuple):
    """One thing that happened: what it added to on_hand, or what was counted."""

    fact: Line
    units: int


UNITS = range(1, 9)
EVENTS = [
    *(Event(sale(units), -units) for units in UNITS),
    *(Event(receive(units), units) for units in UNITS),
    *(Event(comes_back(units, each), units) for units in UNITS for each in Disposition),
    *(Event(adjust(units), units) for units in (-7, -1, 1, 7)),
    *(Event(write_off(units), -units) for units in UNITS),
    *(Event(count(units), units) for units in range(0, 40, 2)),
]
days = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=12).flatmap(
    lambda day: st.tuples(st.just(day), st.permutations(range(len(day))))
)


@given(days, st.integers(1, 4))
def test_the_order_of_arrival_does_not_matter(
    day: tuple[list[Event], list[int]], lines_of_a_block: int
) -> None:
    happened, arrival = day
    shop = Shop(tea=20)
    start = shop.now_ns
    shop.wait(1_000 * MINUTE)
    heard = [
        happened[number].fact._replace(occurred_at_ns=start + (number + 1) * MINUTE)
        for number in arrival
    ]
    for first in range(0, len(heard), lines_of_a_block):
        shop.does(*heard[first : first + lines_of_a_block])
    on_hand = 20
    for event in happened:
        on_hand = event.units + (0 if event.fact.kind == Kind.COUNT else on_hand)
    assert shop.cell(TEA).on_hand == on_hand

"""In whatever order facts arrive, a cell has what its last count saw and what moved after that."""

from itertools import accumulate
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from engine.operations import Disposition, Kind
from engine.reference import Line
from tests.property.histories import BERLIN, MS, request
from tests.property.shop import (
    JAM,
    TEA,
    Shop,
    adjust,
    comes_back,
    commit,
    count,
    fulfil,
    hold_id,
    receive,
    reserve,
    sale,
    unfulfil,
    write_off,
)

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
    *(Event(fulfil("order", units), -units) for units in UNITS),
    *(Event(unfulfil("order", units), units) for units in UNITS),
    *(Event(count(units), units) for units in range(0, 40, 2)),
]
# What happened and how many minutes after the one before: none is its very moment.
days = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 1)), min_size=1, max_size=12
).flatmap(lambda day: st.tuples(st.just(day), st.permutations(range(len(day)))))


@given(days, st.integers(1, 4))
def test_the_order_of_arrival_does_not_matter(
    day: tuple[list[tuple[Event, int]], list[int]], lines_of_a_block: int
) -> None:
    """A count is before all else of its moment; of two counts of one moment the later word holds."""
    happened, arrival = day
    shop = Shop(tea=220)
    shop.holds("order", reserve(200))
    shop.does(commit("order"), fulfil("order", 100))  # enough of it for every day
    shop.does(count(20))
    start = shop.now_ns
    shop.wait(1_000 * MINUTE)
    minutes = list(accumulate((pause for _, pause in happened), initial=1))[1:]
    heard = [
        happened[number][0].fact._replace(occurred_at_ns=start + minutes[number] * MINUTE)
        for number in arrival
    ]
    for first in range(0, len(heard), lines_of_a_block):
        shop.does(*heard[first : first + lines_of_a_block])
    on_hand = 20
    in_order = [(minutes[number], happened[number][0]) for number in arrival]
    in_order.sort(key=lambda each: (each[0], each[1].fact.kind != Kind.COUNT))
    for _, event in in_order:
        on_hand = event.units + (0 if event.fact.kind == Kind.COUNT else on_hand)
    assert shop.cell(TEA).on_hand == on_hand


class Heard(NamedTuple):
    """A line that a shard hears of so many minutes after it happened; 0: it does not say when."""

    fact: Line
    late: int


CELLS = [TEA, JAM, (3, BERLIN), (1, 2), (2, 2)]  # more than there are buckets of links
heard = st.builds(
    Heard,
    st.sampled_from([*[TEA, JAM] * 3, *CELLS]).flatmap(
        lambda cell: st.sampled_from([*[count(9, cell)] * 3, sale(1, cell), receive(2, cell)])
    ),
    st.integers(0, 5),
)


@given(
    st.lists(st.tuples(st.lists(heard, min_size=1, max_size=24), st.integers(1, 24)), max_size=5),
    st.sampled_from([3, 12, 1000]),
)
def test_many_late_counts_of_a_cell_in_one_block(
    blocks: list[tuple[list[Heard], int]], movements_remembered: int
) -> None:
    """They share what they walk back; a count of the reference machine looks at every movement."""
    shop = Shop(tea=100, jam=100, movements_remembered=movements_remembered)
    shop.does(*[receive(1, cell) for cell in CELLS] * 3)
    for told, first in blocks:
        shop.wait(MINUTE)
        now = shop.now_ns
        lines = [
            fact._replace(occurred_at_ns=now - late * MINUTE if late else 0) for fact, late in told
        ]
        requests = [lines[:first], lines[first:]]
        shop.pair.now_ns += 1
        shop.pair.apply(
            [request(hold_id(str(number)), each) for number, each in enumerate(requests) if each]
        )

"""On every generated history the kernels and the reference machine are the same machine."""

from hypothesis import given

from tests.property.histories import BASES, History, finished, histories, receipts, request
from tests.property.pair import Pair


@given(histories)
def test_both_machines_live_the_same_life(history: History) -> None:
    pair = Pair(
        resolved_remembered=history.resolved_remembered,
        movements_remembered=history.movements_remembered,
        expiries_per_block=history.expiries_per_block,
        now_ns=history.began_ns,
    )
    stock = receipts(history.stock)
    pair.apply([request(BASES[0], stock)] if stock else [])
    for step in history.steps:
        pair.wait(step.wait)
        for location, changed in step.places:
            pair.set_location(location, **changed)
        for extreme in step.extremes:
            pair.force(*extreme)
        holds = pair.reference.holds
        pair.apply([finished(draft, holds, pair.now_ns) for draft in step.drafts])

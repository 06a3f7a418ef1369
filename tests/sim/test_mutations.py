"""Planted bugs, each of which the simulation must find: or a clean run of it would mean little."""

import pytest

from tests.sim.mutations import MUTATIONS, Mutation
from tests.sim.run import run


# When the seed that is known to find one finds it no more, all others are tried: minutes, until
# `python -m tests.sim --planted` has told the new one.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_found(mutation: Mutation) -> None:
    with mutation.plant():
        found = next((seed for seed in mutation.to_try() if run(seed).wrong), None)
    assert found is not None, f"not found in {mutation.seeds} seeds"
    assert not run(found).wrong, "the seed is right without the bug"

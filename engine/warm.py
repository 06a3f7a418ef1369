"""Compile every kernel into numba's cache: `python -m engine.warm`.

One process does this before the actors start, or each of them would spend ten seconds on it. With a
warm cache it takes as long as importing numba.
"""

from engine import snapshot
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.operations import Kind, Request


def warm() -> None:
    """Run every kernel once."""
    machine = Machine(resolved_remembered=1)
    machine.set_sku_limit(1)
    machine.set_location(1, owned=True, currency=840)
    kinds = list(Kind)
    everything = Request.of(
        bytes(16), len(kinds), kind=kinds, sku=1, location=1, quantity=1, value=1, currency=840
    )
    machine.apply(1, [everything])
    # A hold, and a fact that endangers it.
    names_it = Request.of(
        bytes(16), 3, kind=[Kind.RECEIVE, Kind.RESERVE, Kind.COUNT], sku=1, location=1,
        quantity=[9, 1, 0], value=1,
    )  # fmt: skip
    assert machine.apply(2, [names_it]).endangered
    machine.cell(1, 1)
    machine.hold(bytes(16))
    machine.incoming_of([(1, 1)])
    machine.next_deadline_ns()
    machine.tidy(1)
    snapshot.load(
        snapshot.dump(machine, AnswerMemory(), 0), Machine(resolved_remembered=1), AnswerMemory()
    )


if __name__ == "__main__":
    warm()

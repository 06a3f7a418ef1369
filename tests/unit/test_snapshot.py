"""A snapshot is the whole state: a machine loaded from it goes on as the one it was taken of."""

import os

import numpy as np
import pytest

from engine import snapshot
from engine.block import NOT_SOLD, Place
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.operations import Answer, Kind, Request

SECOND = 10**9


def busy_machine(seed: int, blocks: int = 30) -> tuple[Machine, np.random.Generator]:
    machine = Machine(resolved_remembered=50, expiries_per_block=600)
    machine.set_sku_limit(40)
    for location in (1, 2, 3):
        machine.set_place(Place(location, location != 3, 840, buffers=(0, NOT_SOLD, 5)))
    random = np.random.default_rng(seed)
    for _ in range(blocks):
        step(machine, random)
    return machine, random


def step(machine: Machine, random: np.random.Generator) -> bytes:
    lines = 60
    kinds = random.choice([Kind.RESERVE, Kind.RECEIVE, Kind.SALE, Kind.SET_PRICE], lines)
    request = Request.of(
        random.bytes(14) + b"\0\0", lines, kind=kinds.astype(np.uint8), currency=840,
        sku=random.integers(1, 41, lines), location=random.integers(1, 4, lines),
        quantity=random.integers(1, 9, lines), value=random.integers(1, 5_000, lines),
    )  # fmt: skip
    return machine.apply(
        machine.now_ns + int(random.integers(1, SECOND)), [request]
    ).status.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_a_loaded_machine_goes_on_alike(seed: int) -> None:
    machine, random = busy_machine(seed)
    memory, other_memory = AnswerMemory(), AnswerMemory()
    memory.remember(Request.of(bytes(16), 1), Answer(b"\0", b"", 1, 2, 3))
    pieces = snapshot.dump(machine, memory, 77)
    other = Machine(resolved_remembered=50, expiries_per_block=600)
    assert snapshot.load(pieces, other, other_memory) == 77
    assert other.state_hash == machine.state_hash
    assert other_memory.dump() == memory.dump()
    assert other.places == machine.places
    twin = np.random.default_rng()
    twin.bit_generator.state = random.bit_generator.state
    for _ in range(30):
        assert step(machine, random) == step(other, twin)
        assert machine.state_hash == other.state_hash
    assert machine.audit() == other.audit() == []
    assert (machine.expired, machine.holds_open) == (other.expired, other.holds_open)
    assert machine.expired > 0


def test_pieces_are_frozen_when_the_dump_returns() -> None:
    machine, random = busy_machine(9)
    state_hash = machine.state_hash
    pieces = snapshot.dump(machine, AnswerMemory(), 0)
    step(machine, random)
    other = Machine(resolved_remembered=50)
    snapshot.load(pieces, other, AnswerMemory())
    assert other.state_hash == state_hash != machine.state_hash


def test_damage_is_noticed() -> None:
    machine, _ = busy_machine(3)
    whole = b"".join(snapshot.dump(machine, AnswerMemory(), 0))
    for bad in (b"", whole[:-1], whole + b"x", os.urandom(1000), whole[:40]):
        with pytest.raises(snapshot.SnapshotDamaged):
            snapshot.load([bad], Machine(resolved_remembered=50), AnswerMemory())
    at = whole.index(machine.state.cells[0].tobytes()) + 8
    flipped = bytearray(whole)
    flipped[at] ^= 1
    with pytest.raises(snapshot.SnapshotDamaged, match="hash"):
        snapshot.load([bytes(flipped)], Machine(resolved_remembered=50), AnswerMemory())

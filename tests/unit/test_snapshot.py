"""A snapshot is the whole state: a machine loaded from it goes on as the one it was taken of."""

import os

import numpy as np
import pytest

from engine import kernels, snapshot
from engine.block import NOT_SOLD, Place
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.operations import Answer, Kind, Request

SECOND = 10**9
BOUNDS = {"resolved_remembered": 50, "movements_remembered": 200, "expiries_per_block": 600}


def busy_machine(seed: int, blocks: int = 30) -> tuple[Machine, np.random.Generator]:
    machine = Machine(**BOUNDS)
    machine.set_sku_limit(40)
    for location in (1, 2, 3):
        machine.set_place(Place(location, location != 3, 840, buffers=(0, NOT_SOLD, 5)))
    random = np.random.default_rng(seed)
    for _ in range(blocks):
        step(machine, random)
    return machine, random


def step(
    machine: Machine,
    random: np.random.Generator,
    skus: int = 40,
    capture: snapshot.Capture | None = None,
) -> bytes:
    lines = 60
    kinds = random.choice(
        [Kind.RESERVE, Kind.RECEIVE, Kind.SALE, Kind.SET_PRICE, Kind.COUNT], lines
    )
    late = random.integers(0, 2, lines) * max(machine.now_ns - int(random.integers(5 * SECOND)), 0)
    request = Request.of(
        random.bytes(14) + b"\0\0", lines, kind=kinds.astype(np.uint8), currency=840,
        sku=random.integers(1, skus + 1, lines), location=random.integers(1, 4, lines),
        quantity=random.integers(1, 9, lines), value=random.integers(1, 5_000, lines),
        occurred_at_ns=late,
    )  # fmt: skip
    outcome = machine.apply(machine.now_ns + int(random.integers(1, SECOND)), [request])
    if capture is not None:
        capture.note(outcome.image.rows)
    return outcome.status.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_a_loaded_machine_goes_on_alike(seed: int) -> None:
    machine, random = busy_machine(seed)
    memory, other_memory = AnswerMemory(), AnswerMemory()
    memory.remember(Request.of(bytes(16), 1), Answer(b"\0", b"", 1, 2, 3))
    pieces = snapshot.dump(machine, memory, 77)
    other = Machine(**BOUNDS)
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
    assert machine.state.meta[kernels.MOVED] > BOUNDS["movements_remembered"]


@pytest.mark.parametrize("between", [0, 1, 4])
def test_a_snapshot_that_is_taken_while_the_machine_goes_on_is_of_its_end(
    between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were copied change, others change before they are copied, new ones come."""
    monkeypatch.setattr(snapshot, "PIECE_ROWS", 7)
    monkeypatch.setattr(snapshot, "_MERGE", 3)
    machine, random = busy_machine(9, 2)
    machine.set_sku_limit(200)
    capture = snapshot.Capture(machine)
    pieces: list[bytes] = []
    for piece in capture.pieces():
        pieces.append(piece)
        for _ in range(between):
            step(machine, random, 200, capture)
    pieces += capture.finish(AnswerMemory(), 5)
    state_hash = machine.state_hash
    step(machine, random)  # what was given out is frozen
    other = Machine(**BOUNDS)
    assert snapshot.load(pieces, other, AnswerMemory()) == 5
    assert other.state_hash == state_hash != machine.state_hash
    assert other.audit() == []


def test_a_snapshot_is_not_finished_before_its_pieces_are_taken() -> None:
    capture = snapshot.Capture(busy_machine(9)[0])
    next(capture.pieces())
    with pytest.raises(ValueError, match="rows were copied"):
        capture.finish(AnswerMemory(), 0)


def test_damage_is_noticed() -> None:
    machine, _ = busy_machine(3)
    whole = b"".join(snapshot.dump(machine, AnswerMemory(), 0))
    huge = snapshot._packed({"v": snapshot.FORMAT, "rows": 1 << 40})
    for bad in (b"", whole[:-1], whole + b"x", os.urandom(1000), whole[:40], huge):
        with pytest.raises(snapshot.SnapshotDamaged):
            snapshot.load([bad], Machine(**BOUNDS), AnswerMemory())
    at = whole.index(machine.state.cells[0].tobytes()) + 8
    flipped = bytearray(whole)
    flipped[at] ^= 1
    with pytest.raises(snapshot.SnapshotDamaged, match="hash"):
        snapshot.load([bytes(flipped)], Machine(**BOUNDS), AnswerMemory())


def test_a_snapshot_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _ = busy_machine(3, blocks=1)
    monkeypatch.setattr(snapshot, "FORMAT", snapshot.FORMAT + 1)
    foreign = snapshot.dump(machine, AnswerMemory(), 0)
    pieces = list(foreign)
    monkeypatch.undo()
    with pytest.raises(snapshot.SnapshotDamaged, match=f"this is {snapshot.FORMAT}"):
        snapshot.load(pieces, Machine(**BOUNDS), AnswerMemory())


def test_the_bytes_in_use_are_about_what_a_snapshot_copies() -> None:
    def sizes(blocks: int) -> tuple[int, int]:
        machine, _ = busy_machine(5, blocks)
        used = machine.nbytes_used()
        assert 0 < used < sum(machine.nbytes().values())
        return used, sum(map(len, snapshot.dump(machine, AnswerMemory(), 0)))

    (used, copied), (more_used, more_copied) = sizes(1), sizes(10)
    assert more_used - used == pytest.approx(more_copied - copied, abs=200)


@pytest.mark.parametrize("bound", ["resolved_remembered", "movements_remembered"])
def test_a_machine_of_other_bounds_does_not_take_it_over(bound: str) -> None:
    machine, _ = busy_machine(4)
    other = Machine(**BOUNDS | {bound: 100})
    with pytest.raises(ValueError, match="100"):
        snapshot.load(snapshot.dump(machine, AnswerMemory(), 0), other, AnswerMemory())


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_ring_of_movements_that_is_not_full_yet_goes_on_alike(blocks: int) -> None:
    machine, random = busy_machine(6, blocks)
    other = Machine(**BOUNDS)
    snapshot.load(snapshot.dump(machine, AnswerMemory(), 0), other, AnswerMemory())
    twin = np.random.default_rng()
    twin.bit_generator.state = random.bit_generator.state
    for _ in range(8):
        assert step(machine, random) == step(other, twin)
        assert machine.state_hash == other.state_hash

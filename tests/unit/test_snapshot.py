"""A snapshot is the whole state: a machine loaded from it goes on as the one it was taken of."""

import hashlib
import os

import numpy as np
import pytest

from engine import kernels, snapshot
from engine.block import NOT_SOLD, Place
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.operations import Answer, Flag, Kind, Request

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


def one(op_id: int, kind: Kind, quantity: int = 0, *, of: int = 0, **columns: int) -> Request:
    """A request of one line, SKU 1 at location 1 unless the columns say otherwise."""
    given = {"sku": 1, "location": 1, "quantity": quantity, "hold_lo": of} | columns
    return Request.of(op_id.to_bytes(16, "big"), 1, kind=kind, **given)


def machine_with_something_of_all() -> tuple[Machine, AnswerMemory]:
    """Holds and records in every state, movements, places with rules, answers; always the same."""
    machine, memory = Machine(**BOUNDS), AnswerMemory()
    machine.set_sku_limit(3)
    machine.set_place(Place(1, True, 840, buffers=(0, NOT_SOLD, 2)))
    machine.set_place(Place(2, True, 978, split=2, part=1))
    machine.set_place(Place(3, False, 840))
    life = {"value": 60_000}
    blocks = [
        [
            one(1, Kind.RECEIVE, 90),
            one(2, Kind.RECEIVE, 40, sku=2),
            one(3, Kind.SET_PRICE, value=499, currency=840),
            one(4, Kind.SET_SAFETY_STOCK, 3),
            one(5, Kind.COUNT, 88, occurred_at_ns=SECOND // 2),
        ],
        [one(10 + i, Kind.RESERVE, 2 + i, **life) for i in range(8)],
        [one(20, Kind.RESERVE, 1, value=1_000), one(21, Kind.RESERVE, 7, sku=3, **life)],
        [one(30 + i, Kind.COMMIT, of=11 + i) for i in range(4)],
        [one(40, Kind.FULFIL, of=11), one(41, Kind.FULFIL, 1, of=12), one(42, Kind.CANCEL, of=13)],
        [one(50, Kind.RELEASE, of=15), one(51, Kind.ADD_LINE, 4, sku=2, of=16, **life)],
        [
            one(60, Kind.RETURN, 1, of=11),
            one(61, Kind.SALE, 2, of=99),
            one(62, Kind.SALE, 1, sku=2),
        ],
        [one(70 + i, Kind.EXPECT, 5, of=100 + i, value=3 * i) for i in range(3)],
        [one(80, Kind.RECEIVE, 5, of=101), one(81, Kind.CANCEL_INCOMING, of=102)],
        [one(90, Kind.ADJUST, 1, flags=int(Flag.DAMAGED), value=1)],
        [one(91, Kind.SALE, 60)],
    ]
    for number, requests in enumerate(blocks, 1):
        outcome = machine.apply(number * SECOND, requests)
        for request, status in zip(requests, outcome.status.tobytes(), strict=True):
            memory.remember(request, Answer(bytes((status,)), b"", number * SECOND, 1, number))
    return machine, memory


def test_what_the_bytes_are_changes_with_the_number_of_the_format_alone() -> None:
    """A snapshot of another layout must not be read as one of this: then raise FORMAT, and note both."""
    machine, memory = machine_with_something_of_all()
    states = machine.state.lines[: machine.state.meta[kernels.HOLDS_USED], kernels.STATE]
    assert {*range(kernels.H_PENDING, kernels.H_DROPPED + 1)} == {*(states & 0xFF).tolist()}
    whole = hashlib.sha256(b"".join(snapshot.dump(machine, memory, 7))).hexdigest()
    assert (snapshot.FORMAT, whole[:16]) == (7, "38dd5f49b9c60443")


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

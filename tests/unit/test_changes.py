"""The memory of changes: the same request is known by its id, whatever order it lists things in."""

import pytest

from engine.changes import ChangeMemory, asked_for
from engine.entries import Channel, InvalidEntry, Rename

WEB = Channel("web", 1, False, ((2, None), (1, 3)))


def op(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_the_same_request_gets_the_same_answer() -> None:
    memory = ChangeMemory()
    asked = {1: (Rename(1, "TEA"), True), 2: (Rename(1, "TEA"), False), 3: (WEB, True)}
    for number, (entry, changed) in asked.items():
        assert memory.recall(asked_for(op(number), entry)) is None
        memory.remember(asked_for(op(number), entry), changed=changed)
    for number, (entry, changed) in asked.items():
        assert memory.recall(asked_for(op(number), entry)) is changed
    other_order = WEB._replace(locations=((1, 3), (2, None)))
    assert memory.recall(asked_for(op(3), other_order)) is True


@pytest.mark.parametrize(
    "other",
    [
        Rename(1, "TEA-2"),
        Rename(2, "TEA"),
        WEB,
        Channel("TEA", 1),
    ],
)
def test_an_id_that_was_used_for_something_else_is_refused(other: Rename | Channel) -> None:
    memory = ChangeMemory()
    memory.remember(asked_for(op(1), Rename(1, "TEA")), changed=True)
    with pytest.raises(InvalidEntry) as refused:
        memory.recall(asked_for(op(1), other))
    assert refused.value.field == "op_id"


def test_the_oldest_is_forgotten_and_a_repetition_keeps_nothing_longer() -> None:
    memory = ChangeMemory(most=2)
    entry = Rename(1, "TEA")
    for number in (1, 2, 3):
        memory.remember(asked_for(op(number), entry), changed=True)
        assert memory.recall(asked_for(op(1), entry)) is (True if number < 3 else None)
    assert [memory.recall(asked_for(op(number), entry)) for number in (2, 3)] == [True, True]
    assert len(memory) == 2

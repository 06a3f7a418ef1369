"""The memory of answers: the same id gets the same answer, within its bounds."""

import os
from collections.abc import Callable

import pytest

from engine.memory import AnswerMemory
from engine.operations import Answer, Kind, Request
from engine.views import Endangered, EndangeredHold


def request_of(number: int, lines: int = 1) -> Request:
    return Request.of(number.to_bytes(16, "big"), lines, kind=6, sku=number % 7 + 1)


def test_an_answer_is_recalled_as_it_was() -> None:
    memory = AnswerMemory()
    mixed = Answer(bytes(range(20)) * 20, os.urandom(3_200), 5, 6, 7)
    plain = Answer(b"\x17", b"", 8, 9, 10)
    fine = Answer(bytes(8_190), b"", 11, 12, 13)
    named = tuple(Endangered(at, 1, 2, 3, (EndangeredHold(bytes(16), 4, 5),)) for at in (0, 1))
    short = Answer(b"\0\0", b"", 14, 15, 16, endangered=named)
    asked = Answer(b"\0\0", bytes(16), 17, 18, 19, bytes(16), named)
    part = Answer(bytes(40), b"", 20, 21, 22, bytes(320))
    answers = (mixed, plain, fine, short, asked, part)
    for number, answer in enumerate(answers):
        memory.remember(request_of(number, len(answer.status)), answer)
    for number, answer in enumerate(answers):
        found = memory.recall(number.to_bytes(16, "big"))
        assert found == (request_of(number, len(answer.status)).digest, answer)
    assert memory.recall(bytes(15) + b"\x63") is None


def test_at_least_the_last_so_many_requests_are_known_and_no_more_than_twice_that() -> None:
    memory = AnswerMemory(most_requests=10)
    for number in range(1, 96):
        memory.remember(request_of(number), Answer(b"\0", b"", number, 1, 1))
        assert len(memory) <= 20
        for recent in range(max(1, number - 9), number + 1):
            assert memory.recall(recent.to_bytes(16, "big")) is not None
    assert memory.recall((1).to_bytes(16, "big")) is None


def test_large_answers_are_bounded_in_bytes() -> None:
    memory = AnswerMemory(most_bytes=100_000)
    for number in range(1, 60):
        memory.remember(
            request_of(number, 1000), Answer(os.urandom(1000), os.urandom(8000), 1, 1, 1)
        )
    assert len(memory.dump()) < 2 * 115_000


def test_a_dump_is_taken_over() -> None:
    memory, other = AnswerMemory(most_requests=4), AnswerMemory(most_requests=4)
    for number in range(1, 7):
        memory.remember(request_of(number), Answer(b"\x05", b"", number, 1, 1))
    other.load(memory.dump())
    for number in range(1, 7):
        assert other.recall(number.to_bytes(16, "big")) == memory.recall(number.to_bytes(16, "big"))
    for one in (memory, other):
        for number in range(7, 11):
            one.remember(request_of(number), Answer(b"\0", b"", number, 1, 1))
    assert memory.dump() == other.dump()


OK = Answer(b"\0", b"", 1, 1, 1)


def one_of(kind: Kind) -> Request:
    """As single calls come: one line, packed."""
    return Request.one(b"goods come back.", 1, 0, 0, 0, 0, 1, 1, 0, 0, kind, 0)


def batch_with(kind: Kind) -> Request:
    """A batch of sales of which the last line is something else."""
    kinds = [Kind.SALE] * 99 + [kind]
    return Request.of(b"goods come bac\0\0", 100, kind=kinds, sku=1, location=1, quantity=1)


@pytest.mark.parametrize("make", [one_of, batch_with])
@pytest.mark.parametrize("kind", [Kind.RETURN, Kind.CLAIM_RETURN, Kind.WRITE_OFF])
def test_what_brings_goods_back_is_known_whatever_else_is_done(
    make: Callable[[Kind], Request], kind: Kind
) -> None:
    """The steps of a return over shards too: were one of them forgotten, it had a second effect."""
    memory, loaded = AnswerMemory(most_requests=10), AnswerMemory(most_requests=10)
    asked = make(kind)
    answer = Answer(bytes(asked.lines), b"", 1, 2, 3)
    memory.remember(asked, answer)
    for number in range(1, 96):
        memory.remember(request_of(number), OK)
    loaded.load(memory.dump())
    for each in (memory, loaded):
        assert each.recall(asked.op_id) == (asked.digest, answer)
    assert len(loaded) == len(memory)


def test_what_brings_goods_back_is_bounded_too_and_displaces_nothing_else() -> None:
    memory = AnswerMemory(most_requests=10)
    memory.remember(request_of(1), OK)
    for number in range(2, 96):
        back = Request.of(number.to_bytes(16, "big"), 1, kind=Kind.RETURN, sku=1)
        memory.remember(back, OK)
        assert len(memory) <= 21
        for recent in range(max(2, number - 9), number + 1):
            assert memory.recall(recent.to_bytes(16, "big")) is not None
    assert memory.recall((2).to_bytes(16, "big")) is None
    assert memory.recall((1).to_bytes(16, "big")) is not None


def test_a_note_is_nothing_that_comes_back() -> None:
    """It has no columns at all."""
    memory = AnswerMemory(most_requests=10)
    memory.remember(Request.of(b"a note of number", 1), OK)
    for number in range(1, 96):
        memory.remember(request_of(number), OK)
    assert memory.recall(b"a note of number") is None


def test_requests_of_other_content_have_other_digests() -> None:
    base = {"kind": 1, "sku": [1, 2], "location": 1, "quantity": 5, "value": 100}
    digests = {Request.of(bytes(16), 2, **base).digest}
    for change in (
        {"sku": [2, 1]}, {"quantity": [5, 6]}, {"quantity": 6}, {"location": 0}, {"value": 101},
        {"kind": 6}, {"flags": [1, 0]}, {"want_available": True}, {"hold_lo": 5}, {"hold_hi": 5},
    ):  # fmt: skip
        digests.add(Request.of(bytes(16), 2, **{**base, **change}).digest)
    digests.add(Request.of(bytes(16), 1, **{**base, "sku": 1}).digest)
    assert len(digests) == 12


def test_a_column_of_one_value_is_the_same_however_it_is_given() -> None:
    one = Request.of(bytes(16), 3, kind=6, sku=[1, 2, 3], location=[4], quantity=7)
    other = Request.of(
        bytes(16), 3, kind=[6, 6, 6], flags=0, sku=[1, 2, 3], location=[4, 4, 4], quantity=[7, 7, 7]
    )
    assert one.digest == other.digest


def test_what_is_forgotten_is_told_and_what_came_after_it_is_known() -> None:
    memory = AnswerMemory(most_requests=4)
    for seq in range(1, 40):
        request = request_of(seq)
        memory.remember(request, Answer(b"\0", b"", 0, 2, seq))
        epoch, forgotten = memory.forgotten
        assert (epoch, forgotten) == ((2, forgotten) if forgotten else (0, 0))
        known = [each for each in range(1, seq + 1) if memory.recall(request_of(each).op_id)]
        assert known == list(range(forgotten + 1, seq + 1))
    other = AnswerMemory(most_requests=4)
    other.load(memory.dump())
    assert other.forgotten == memory.forgotten > (0, 0)

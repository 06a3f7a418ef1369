"""What goes between processes arrives as it was."""

from engine import wire
from engine.operations import Answer
from engine.views import Endangered, EndangeredHold


def test_answers_arrive_with_what_their_facts_endanger() -> None:
    holds = (EndangeredHold(b"h" * 16, 2, 0), EndangeredHold(b"i" * 16, 0, 1))
    answers = [
        Answer(b"\0\0", bytes(16), 1, 2, 3),
        (wire.OVERLOADED, "many wait already"),
        Answer(
            b"\0\0\0", b"", 4, 5, 6, bytes(24),
            (Endangered(0, 7, 8, 3, holds), Endangered(1, 9, 8, 1, ()), Endangered(2, 7, 8, 3, holds)),
        ),
    ]  # fmt: skip
    assert wire.decode_answers(wire.encode_answers(answers)) == answers

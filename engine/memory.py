"""What was answered to which op_id: the memory behind "the same id gets the same answer".

Two generations of a dict: when the young one is full it becomes the old one, and the old one is
forgotten. So at least the last `limits.REMEMBERED_REQUESTS` requests are known (fewer only when their
answers take more than `limits.REMEMBERED_BYTES`), and it is bounded in bytes. What is forgotten
depends on nothing but the order of requests, so a replayed journal rebuilds the same memory.

Requests by which goods come back have two generations of their own. Nothing but its op_id names a
return, and a till tells it again hours later: what else was done meanwhile may not displace it.
"""

import struct
import zlib
from typing import Any, Final

import msgpack

from engine import limits
from engine.operations import Answer, Kind, Request
from engine.shortages import packed_endangered, unpacked_endangered

_HEAD: Final = struct.Struct("<8sIQQQB")  # digest, lines, now_ns, epoch, seq, packing
_ALL_OK, _PLAIN, _DEFLATED, _WHOLE = range(4)
_GRANTED: Final = 4  # a bit of `packing`: the last 8 bytes a line say what was granted
_WORTH_DEFLATING: Final = 64  # bytes
# A return; over shards also the step that lets where the goods were sold know, and the one that undoes
# it. All of them or none are to be known: of one that is forgotten there would be a second effect.
_RETURN, _CLAIM, _UNDO = int(Kind.RETURN), int(Kind.CLAIM_RETURN), int(Kind.WRITE_OFF)


class _Generations:
    """What was put in last, by op_id: a young generation and an old one."""

    def __init__(self, most_requests: int, most_bytes: int) -> None:
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._young_bytes = 0
        self.forgotten = (0, 0)  # the newest block (epoch, seq) of which something was forgotten

    def put(self, op_id: bytes, entry: bytes) -> None:
        self._young[op_id] = entry
        self._young_bytes += len(entry) - _HEAD.size
        if len(self._young) >= self._most_requests or self._young_bytes >= self._most_bytes:
            if self._old:
                *_, epoch, seq, _ = _HEAD.unpack_from(next(reversed(self._old.values())))
                self.forgotten = epoch, seq
            self._old, self._young, self._young_bytes = self._young, {}, 0

    def get(self, op_id: bytes) -> bytes | None:
        return self._young.get(op_id) or self._old.get(op_id)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def dump(self) -> list[Any]:
        return [self._old, self._young, self.forgotten]

    def load(self, dumped: list[Any]) -> None:
        self._old, self._young, (epoch, seq) = dumped
        self.forgotten = epoch, seq
        self._young_bytes = sum(len(entry) - _HEAD.size for entry in self._young.values())


class AnswerMemory:
    """The answers to the last requests, by op_id."""

    def __init__(
        self,
        most_requests: int = limits.REMEMBERED_REQUESTS,
        most_bytes: int = limits.REMEMBERED_BYTES,
    ) -> None:
        self._returns = _Generations(most_requests, most_bytes)
        self._others = _Generations(most_requests, most_bytes)

    def remember(self, request: Request, answer: Answer) -> None:
        """Keep the answer to a request."""
        packing, body = _ALL_OK, b""
        if answer.endangered:
            packing = _WHOLE
            whole = (
                answer.status,
                answer.available,
                answer.granted,
                packed_endangered(answer.endangered),
            )
            body = zlib.compress(msgpack.packb(whole), 1)
        elif answer.available or answer.granted or answer.status.count(0) != len(answer.status):
            packing, body = _PLAIN, answer.status + answer.available + answer.granted
            if len(body) >= _WORTH_DEFLATING:
                packing, body = _DEFLATED, zlib.compress(body, 1)
            if answer.granted:
                packing |= _GRANTED
        head = _HEAD.pack(
            request.digest, request.lines, answer.now_ns, answer.epoch, answer.seq, packing
        )
        among = self._returns if _brings_back(request) else self._others
        among.put(request.op_id, head + body)

    @property
    def forgotten(self) -> tuple[int, int]:
        """The newest block (epoch, seq) of which an answer was forgotten; what came after it is known."""
        return max(self._others.forgotten, self._returns.forgotten)

    def recall(self, op_id: bytes) -> tuple[bytes, Answer] | None:
        """The digest of the request that came with an op_id, and its answer; None when unknown."""
        entry = self._others.get(op_id) or self._returns.get(op_id)
        if entry is None:
            return None
        digest, lines, now_ns, epoch, seq, packing = _HEAD.unpack_from(entry)
        body = entry[_HEAD.size :]
        if packing == _ALL_OK:
            return digest, Answer(bytes(lines), b"", now_ns, epoch, seq)
        if packing == _WHOLE:
            status, available, granted, endangered = msgpack.unpackb(zlib.decompress(body))
            named = unpacked_endangered(endangered)
            return digest, Answer(status, available, now_ns, epoch, seq, granted, named)
        if packing & ~_GRANTED == _DEFLATED:
            body = zlib.decompress(body)
        end = len(body) - 8 * lines if packing & _GRANTED else len(body)
        return digest, Answer(body[:lines], body[lines:end], now_ns, epoch, seq, body[end:])

    def __len__(self) -> int:
        return len(self._others) + len(self._returns)

    def dump(self) -> bytes:
        """Everything remembered, for a snapshot."""
        packed: bytes = msgpack.packb([self._others.dump(), self._returns.dump()])
        return packed

    def load(self, packed: bytes) -> None:
        """Take over what `dump` gave."""
        others, returns = msgpack.unpackb(packed, strict_map_key=False)
        self._others.load(others)
        self._returns.load(returns)


def _brings_back(request: Request) -> bool:
    """Whether goods come back by some line, or a return is a step further by it."""
    column = request.columns.get("kind")
    if column is None:
        return False
    kinds = column.tobytes()  # searched in C: a batch costs as much as a call
    return _RETURN in kinds or _CLAIM in kinds or _UNDO in kinds

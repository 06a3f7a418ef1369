"""What was answered to which op_id: the memory behind "the same id gets the same answer".

Two generations of a dict: when the young one is full it becomes the old one, and the old one is
forgotten. So at least the last `limits.REMEMBERED_REQUESTS` requests are known (fewer only when their
answers take more than `limits.REMEMBERED_BYTES`), and it is bounded in bytes. What is forgotten
depends on nothing but the order of requests, so a replayed journal rebuilds the same memory.
"""

import struct
import zlib
from typing import Final

import msgpack

from engine import limits
from engine.operations import Answer, Request
from engine.shortages import packed_endangered, unpacked_endangered

_HEAD: Final = struct.Struct("<8sIQQQB")  # digest, lines, now_ns, epoch, seq, packing
_ALL_OK, _PLAIN, _DEFLATED, _WHOLE = range(4)
_GRANTED: Final = 4  # a bit of `packing`: the last 8 bytes a line say what was granted
_WORTH_DEFLATING: Final = 64  # bytes


class AnswerMemory:
    """The answers to the last requests, by op_id."""

    def __init__(
        self,
        most_requests: int = limits.REMEMBERED_REQUESTS,
        most_bytes: int = limits.REMEMBERED_BYTES,
    ) -> None:
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._young_bytes = 0

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
        self._young[request.op_id] = head + body
        self._young_bytes += len(body)
        if len(self._young) >= self._most_requests or self._young_bytes >= self._most_bytes:
            self._old, self._young, self._young_bytes = self._young, {}, 0

    def recall(self, op_id: bytes) -> tuple[bytes, Answer] | None:
        """The digest of the request that came with an op_id, and its answer; None when unknown."""
        entry = self._young.get(op_id) or self._old.get(op_id)
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
        return len(self._young) + len(self._old)

    def dump(self) -> bytes:
        """Everything remembered, for a snapshot."""
        packed: bytes = msgpack.packb([self._old, self._young])
        return packed

    def load(self, packed: bytes) -> None:
        """Take over what `dump` gave."""
        self._old, self._young = msgpack.unpackb(packed, strict_map_key=False)
        self._young_bytes = sum(len(entry) - _HEAD.size for entry in self._young.values())

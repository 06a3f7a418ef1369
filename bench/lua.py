"""The peer of `bench.submit`: reservations by a Lua script in Valkey, as they are usually made.

A hash for each cell, a key with a time to live for each op id, the holds in one hash and their
deadlines in one sorted set; a second script, sent with each pipeline, expires what is overdue. The
client writes its commands as bytes and only counts the replies, so that the server is what is
measured. Closed loop: each of `connections` sends the next pipeline when the last was answered.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

import numpy as np
import redis

from adapters.resp import Endpoint

CELL: Final = "c:%d"
STOCK: Final = 1_000_000  # base units a cell: nothing is ever refused
OP_ID_MS: Final = 60_000  # how long an op id is remembered

# KEYS: cell, op id, holds, deadlines. ARGV: quantity, deadline in ms, ms to remember the op id.
RESERVE: Final = """
local seen = redis.call('GET', KEYS[2])
if seen then return tonumber(seen) end
local cell = redis.call('HMGET', KEYS[1], 'on_hand', 'reserved')
local answer = 0
if not cell[1] or tonumber(cell[1]) - tonumber(cell[2]) < tonumber(ARGV[1]) then
  answer = 23
else
  redis.call('HINCRBY', KEYS[1], 'reserved', ARGV[1])
  redis.call('HSET', KEYS[3], KEYS[2], KEYS[1] .. ' ' .. ARGV[1])
  redis.call('ZADD', KEYS[4], ARGV[2], KEYS[2])
end
redis.call('SET', KEYS[2], answer, 'PX', ARGV[3])
return answer
"""
# KEYS: holds, deadlines. ARGV: now in ms, how many at most. Answers -1 - the number of expired.
SWEEP: Final = """
local due = redis.call('ZRANGEBYSCORE', KEYS[2], 0, '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(due) do
  local cell, quantity = string.match(redis.call('HGET', KEYS[1], id), '^(%S+) (%d+)$')
  redis.call('HINCRBY', cell, 'reserved', -quantity)
  redis.call('HDEL', KEYS[1], id)
end
if #due > 0 then redis.call('ZREM', KEYS[2], unpack(due)) end
return -1 - #due
"""
SWEEP_MOST: Final = 1_000  # of one call: twice what a pipeline reserves, so expiry keeps up


@dataclass(frozen=True, slots=True)
class LuaLoad:
    """What to send."""

    url: str
    seconds: float
    cells: int
    ttl_ms: int = 2_000
    pipeline: int = 500
    connections: int = 4
    warm_up_s: float = 0.5


@dataclass(frozen=True, slots=True)
class LuaMeasured:
    """What came of it. `conserved`: each cell's reserved is the sum of the holds on it."""

    lines_per_s: float
    refused: int
    expired: int
    conserved: bool


def run(load: LuaLoad) -> LuaMeasured:
    """Fill a server with cells, reserve for a while, and check the sums."""
    with redis.Redis.from_url(load.url, decode_responses=True) as admin:
        _fill(admin, load.cells)
        admin.script_load(RESERVE)
        admin.script_load(SWEEP)
        counted, all_ok, refused = asyncio.run(_reserve(load))
        conserved, expired = _check(admin, load.cells, all_ok)
    return LuaMeasured(counted / load.seconds, refused, expired, conserved)


def _fill(admin: Any, cells: int) -> None:
    for first in range(0, cells, 10_000):
        pipeline = admin.pipeline(transaction=False)
        for cell in range(first, min(first + 10_000, cells)):
            pipeline.hset(CELL % cell, mapping={"on_hand": STOCK, "reserved": 0})
        pipeline.execute()


async def _reserve(load: LuaLoad) -> tuple[int, int, int]:
    """Reserve on all connections: (answered OK in the measured time, OK in all, refused)."""
    endpoint = Endpoint.parse(load.url)
    begins_s = time.perf_counter() + load.warm_up_s
    ends_s = begins_s + load.seconds
    counted = all_ok = refused = 0

    async def send(seed: int) -> None:
        nonlocal counted, all_ok, refused
        pipelines = _Pipelines(load, seed)
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        while time.perf_counter() < ends_s:
            writer.write(pipelines.next())
            answers = await _replies(reader, load.pipeline + 1)
            count = answers.count(b":0\r\n")
            # What is answered after the end is not counted, as the time until then is not.
            counted += count if begins_s <= time.perf_counter() < ends_s else 0
            all_ok += count
            refused += load.pipeline - count
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*map(send, range(load.connections)))
    return counted, all_ok, refused


class _Pipelines:
    """Pipelines as bytes: reservations of random cells with fresh op ids, and one sweep."""

    def __init__(self, load: LuaLoad, seed: int) -> None:
        self._load = load
        self._random = np.random.default_rng(seed)
        self._prefix = secrets.token_bytes(8).hex().encode()
        self._sent = 0
        heads = (_words(b"EVALSHA", _sha(RESERVE), b"4", cell) for cell in self._names())
        self._heads = [b"*10\r\n" + head + b"$34\r\no:" + self._prefix for head in heads]
        self._window = _words(b"%d" % OP_ID_MS)
        self._middle = b"\r\n" + _words(b"holds", b"deadlines", b"1")
        self._sweep = b"*7\r\n" + _words(b"EVALSHA", _sha(SWEEP), b"2", b"holds", b"deadlines")

    def _names(self) -> list[bytes]:
        return [(CELL % cell).encode() for cell in range(self._load.cells)]

    def next(self) -> bytes:
        load = self._load
        now_ms = time.time_ns() // 1_000_000
        tail = self._middle + _words(b"%d" % (now_ms + load.ttl_ms)) + self._window
        first, self._sent = self._sent, self._sent + load.pipeline
        cells = self._random.integers(0, load.cells, load.pipeline).tolist()
        heads = self._heads
        commands = [b"%b%016x%b" % (heads[cell], n, tail) for n, cell in enumerate(cells, first)]
        commands.append(self._sweep + _words(b"%d" % now_ms, b"%d" % SWEEP_MOST))
        return b"".join(commands)


def _words(*words: bytes) -> bytes:
    """Arguments as the protocol has them."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _sha(script: str) -> bytes:
    return sha1(script.encode(), usedforsecurity=False).hexdigest().encode()


async def _replies(reader: asyncio.StreamReader, count: int) -> bytes:
    """Read so many integer replies, as they are. RuntimeError when one is an error."""
    chunks: list[bytes] = []
    while count > 0:
        chunk = await reader.read(1 << 16)
        if not chunk:
            raise ConnectionError("Valkey closed the connection")
        count -= chunk.count(b"\n")
        chunks.append(chunk)
    answers = b"".join(chunks)
    if b"-ERR" in answers or b"-NOSCRIPT" in answers or b"-OOM" in answers:
        raise RuntimeError(answers[answers.index(b"-") :][:200].decode())
    return answers


def _check(admin: Any, cells: int, reserved: int) -> tuple[bool, int]:
    """Whether reserved is the sum of the open holds, cell by cell; and how many have expired."""
    open_holds: dict[str, int] = {}
    holds = list(admin.hgetall("holds").values())
    for hold in holds:
        cell, quantity = hold.split()
        open_holds[cell] = open_holds.get(cell, 0) + int(quantity)
    pipeline = admin.pipeline(transaction=False)
    for cell in range(cells):
        pipeline.hget(CELL % cell, "reserved")
    found = {CELL % cell: int(each) for cell, each in enumerate(pipeline.execute())}
    conserved = all(open_holds.get(cell, 0) == each for cell, each in found.items())
    return conserved, reserved - len(holds)

"""The shards as a router sees them: by number, all asked at once, and where things are."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from actors.parts import Part
from actors.ports import Overloaded, ShardLink, Sight, Unavailable
from engine.operations import Answer, Request
from engine.shard_map import ShardMap
from engine.views import Hold, Incoming

Seen = tuple[int, int]
"""The epoch and the number of a block."""

_T = TypeVar("_T")
_P = ParamSpec("_P")

# The shards that have answered a step of the operation that is under way.
_steps: ContextVar[set[int] | None] = ContextVar("steps", default=None)


class Shards:
    """Links to shards, and the newest shard map."""

    def __init__(self, links: Mapping[int, ShardLink], shard_map: Callable[[], ShardMap]) -> None:
        self._links = dict(links)
        self._shard_map = shard_map
        # The newest block of each shard that has answered something.
        self.seen: dict[int, Seen] = {}

    @property
    def map(self) -> ShardMap:
        """The shard map as it is now."""
        return self._shard_map()

    def link(self, shard: int) -> ShardLink:
        """The way to a shard. Raises Unavailable when there is none."""
        try:
            return self._links[shard]
        except KeyError:
            raise Unavailable(f"shard {shard} is not known here") from None

    def asked_for(self, location: int) -> list[int]:
        """The shards where something at a location may be; all of them when it is 0."""
        return sorted(self.map.owners(location) if location else self._links)

    async def submit(self, shard: int, request: Request) -> Answer:
        """Send a request to one shard."""
        answer = await self.link(shard).submit(request)
        self.seen[shard] = max(self.seen.get(shard, (0, 0)), (answer.epoch, answer.seq))
        steps = _steps.get()
        if steps is not None:
            steps.add(shard)
        return answer

    async def submit_each(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """Send each shard its request, all at once."""
        answers = await every(self.submit(*each) for each in requests.items())
        return dict(zip(requests, answers, strict=True))

    async def submit_parts(self, parts: Sequence[Part]) -> list[Answer]:
        """Send the parts of a request, all at once."""
        return await every(self.submit(part.shard, part.request) for part in parts)

    async def holds(self, hold_id: bytes, shards: Sequence[int]) -> dict[int, Hold]:
        """Ask shards for their parts of a hold, to write by it; those that have one, in order."""
        found = await every(self.link(shard).hold(hold_id, sure=True) for shard in shards)
        return {shard: part for shard, part in zip(shards, found, strict=True) if part is not None}

    async def sights(
        self, hold_id: bytes, shards: Sequence[int], op_ids: Sequence[bytes] = ()
    ) -> dict[int, Sight]:
        """Ask shards what they know of a hold."""
        found = await every(self.link(shard).sight(hold_id, op_ids) for shard in shards)
        return dict(zip(shards, found, strict=True))

    async def incoming(
        self, incoming_id: bytes, shards: Sequence[int], *, sure: bool
    ) -> dict[int, Incoming]:
        """Ask shards for their parts of an incoming record; those that have one, in order."""
        found = await every(self.link(shard).incoming(incoming_id, sure=sure) for shard in shards)
        return {shard: part for shard, part in zip(shards, found, strict=True) if part is not None}


def in_doubt_half_way(
    operation: Callable[_P, Coroutine[Any, Any, _T]],
) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """An operation of several steps: when a later one is Overloaded, it is Unavailable.

    Overloaded says that nothing was judged, and a caller may let it be then.
    """

    @wraps(operation)
    async def run(*args: _P.args, **named: _P.kwargs) -> _T:
        if _steps.get() is not None:  # it is part of another one
            return await operation(*args, **named)
        steps: set[int] = set()
        _steps.set(steps)
        try:
            return await operation(*args, **named)
        except Overloaded as error:
            if steps:
                raise Unavailable(f"stopped half-way: {error}") from error
            raise
        finally:
            _steps.set(None)  # a token could not be used where a coroutine is let go of

    return run


def is_half_way() -> bool:
    """Whether a shard has answered a step of the operation that is under way."""
    return bool(_steps.get())


class Turns:
    """Calls on the same hold, one after the other; nothing is kept of holds that nobody calls."""

    def __init__(self) -> None:
        self._calls: dict[bytes, tuple[asyncio.Lock, int]] = {}  # how many calls have a lock

    def __len__(self) -> int:
        return len(self._calls)

    @asynccontextmanager
    async def of(self, hold_id: bytes) -> AsyncIterator[None]:
        """Wait for one's turn at a hold, and have it."""
        lock, calls = self._calls.get(hold_id, (asyncio.Lock(), 0))
        self._calls[hold_id] = lock, calls + 1
        try:
            async with lock:
                yield
        finally:
            lock, calls = self._calls.pop(hold_id)
            if calls > 1:
                self._calls[hold_id] = lock, calls - 1


async def every(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Wait for all calls to end, then raise what one raised, if any.

    Overloaded says that nothing was judged, so it stands only if each call said so. When one cannot
    even be made, the others are not begun.
    """
    coroutines: list[Coroutine[Any, Any, _T]] = []
    try:
        coroutines.extend(calls)
    except BaseException:
        for call in coroutines:
            call.close()
        raise
    if len(coroutines) == 1:
        return [await coroutines[0]]
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [each for each in results if isinstance(each, BaseException)]
    if errors:
        bugs = [each for each in errors if not isinstance(each, Overloaded | Unavailable)]
        if bugs:
            raise bugs[0]
        if len(errors) < len(results) or any(isinstance(each, Unavailable) for each in errors):
            raise Unavailable(f"not every shard answered: {errors[0]}") from errors[0]
        raise errors[0]
    return [each for each in results if not isinstance(each, BaseException)]

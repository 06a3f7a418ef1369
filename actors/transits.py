"""Units of a hold on their way from one shard to another: how anybody finds them, and how it ends.

A transit is of a hold, goes from one shard (the source) to another (the target), and has three steps.
Source and target may be the same, where a move over several shards must keep all stock before any unit leaves.
It takes a *place* at the target: a hold of its own that keeps the stock there. Its units *leave*:
the hold gives them up at the source. Then it *arrives*: the place hands them over to the hold's part
there, or gives the stock back when they did not leave. The step at the source decides between the
transit and whatever else is done with these units.

Places of one hold at one target are numbered without gaps, and their ids follow from the hold's and
the number, as those of the later steps do from the place's. So whoever must know all of a hold finds
what is on its way with one question to each shard, and can end it: by asking the step at the source
with a content that changes nothing, which gets the answer if it was taken, and otherwise takes its
place so that the units stay; and then by the last step, which is the same whoever takes it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from itertools import count
from typing import Any, Final

from actors.parts import on, step_id
from actors.ports import Sight, Unavailable, Waiting
from actors.shards import Shards, every
from engine import limits
from engine.operations import Answer, Flag, Kind, Request
from engine.status import Status
from engine.views import Hold, HoldState

ROUNDS: Final = 16  # how often a call goes after a hold that others move meanwhile
_WAITS: Final = (HoldState.PENDING, HoldState.EXPIRED)  # a place that nobody has ended
ENDED: Final = bytes((Status.INVALID_KIND,))  # the step at the source: others have taken its place

Recall = Callable[[bytes], tuple[bytes, Answer] | None]
Line = tuple[int, int, int]
"""A SKU, a location, units."""


def place_id(hold_id: bytes, number: int) -> bytes:
    """The id of a place; it is also the op_id that takes it."""
    return step_id(hold_id, f"place {number}")


def sight_of(
    hold_id: bytes,
    op_ids: Sequence[bytes],
    hold: Callable[[bytes], Hold | None],
    recall: Recall,
    forgotten: tuple[int, int],
) -> Sight:
    """What a shard knows of a hold, by its looking up holds and answers, of which some are forgotten."""
    waiting: list[Waiting] = []
    for number in count():
        known, waits = recall(place_id(hold_id, number)), hold(place_id(hold_id, number))
        if known is None and waits is None:
            break
        waiting.append(Waiting(known[0] if known else b"", waits))
    known_ids = {op_id: known for op_id in op_ids if (known := recall(op_id))}
    digests = {op_id: digest for op_id, (digest, _) in known_ids.items()}
    done = {op_id for op_id, (_, answer) in known_ids.items() if not any(answer.status)}
    return Sight(hold(hold_id), waiting, digests, done, forgotten)


def have_moved(sights: Mapping[int, Sight]) -> bool:
    """Whether any units of a hold have ever gone from one shard to another."""
    return any(sight.waiting for sight in sights.values())


async def have_left(
    shards: Shards, hold_id: bytes, source: int, sights: Mapping[int, Sight]
) -> bool:
    """Whether any units of a hold have ever left a shard, for a place that was seen."""
    places = [(at, number) for at, sight in sights.items() for number in range(len(sight.waiting))]
    if not places:
        return False
    return bool((await shards.link(source).sight(hold_id, _leave_ids(hold_id, places))).done)


def _leave_ids(hold_id: bytes, places: Collection[tuple[int, int]]) -> list[bytes]:
    """The ids of the steps at any source, for places by their target and number."""
    return [step_id(place_id(hold_id, number), _leaving(target)) for target, number in places]


# --- steps ----------------------------------------------------------------------------------------


async def take_place(
    shards: Shards,
    target: int,
    place: bytes,
    digest: bytes,
    lines: Sequence[Line],
    ttl_ms: int,
    channel: int = 0,
) -> Answer:
    """Keep the stock for units at their target; `digest` says whose they are.

    `channel`, if not 0, is the one that they are for: it must be able to have the stock there.

    Without lines it takes the place for nothing, and is answered ENDED.
    """
    columns: dict[str, Any] = {}
    if lines:
        columns = {"kind": Kind.RESERVE, "value": ttl_ms, "channel": channel, **_linked(lines)}
    step = Request.of(place, max(len(lines), 1), want_available=True, **columns)
    step.digest = digest
    return await shards.submit(target, step)


async def leave(
    shards: Shards, source: int, target: int, place: bytes, hold_id: bytes, lines: Sequence[Line]
) -> Answer:
    """Give units up at their source, all or none; `lines` are the cells that they leave.

    Without lines it only asks: whether they have left, or else that they never do (ENDED).
    """
    columns = {"kind": Kind.RELEASE, **_linked(lines), **on(hold_id)} if lines else {}
    return await shards.submit(source, _step(place, _leaving(target), max(len(lines), 1), columns))


def _leaving(target: int) -> str:
    """The step at a source, of a place at its target."""
    return f"leave {target}"


async def arrive(
    shards: Shards, target: int, place: bytes, hold_id: bytes, waits: Hold, *, have_left: bool
) -> Answer:
    """Let units that have left join the hold where they went; otherwise give the stock back."""
    columns: dict[str, Any] = {"kind": Kind.RELEASE, **on(place)}
    lines = 1
    if have_left:
        lines = 2 * len(waits.lines)
        pairs = [(line.sku, line.location, line.pending) for line in waits.lines for _ in range(2)]
        skus, locations, units = zip(*pairs, strict=True)
        columns = {"sku": skus, "location": locations, "quantity": units}
        columns["kind"] = [Kind.RELEASE, Kind.ADD_LINE] * len(waits.lines)
        columns["flags"] = [Flag.LINKED, 0] * len(waits.lines)
        givers, takers = on(place), on(hold_id)
        for half in givers:
            columns[half] = [givers[half], takers[half]] * len(waits.lines)
    return await shards.submit(target, _step(place, "arrive", lines, columns))


async def keep(
    shards: Shards, source: int, target: int, place: bytes, hold_id: bytes, waits: Hold, now_ns: int
) -> None:
    """Let units that have left live as long as they would have, where others gave them more time.

    The place gets it, before they arrive: so they have it as soon as they are the hold's.
    """
    hold = await shards.link(source).hold(hold_id, sure=True)
    if hold is not None and hold.deadline_ns > waits.deadline_ns:
        ttl_ms = -((now_ns - hold.deadline_ns) // limits.NS_PER_MS)
        if ttl_ms >= limits.MIN_TTL_MS:
            columns = {"kind": Kind.EXTEND, "value": min(ttl_ms, limits.MAX_TTL_MS), **on(place)}
            await shards.submit(target, _step(place, "keep", 1, columns))


def _linked(lines: Sequence[Line]) -> dict[str, Any]:
    """The columns of lines that stand or fall together."""
    skus, locations, units = zip(*lines, strict=True)
    flags = [Flag.LINKED] * (len(lines) - 1) + [0]
    return {"sku": skus, "location": locations, "quantity": units, "flags": flags}


def _step(place: bytes, name: str, lines: int, columns: dict[str, Any]) -> Request:
    """A step of a transit: of the same id and digest, whoever takes it and whatever it says."""
    step = Request.of(step_id(place, name), lines, want_available=True, **columns)
    step.digest = place[:8]
    return step


# --- what others do about it ----------------------------------------------------------------------


class _End(Enum):
    CHANGED = auto()  # the units are in the hold now, or the stock is given back
    NEVER_LEFT = auto()
    LOST = auto()  # they left, and the part that they would join has run out, or what waits


async def at_rest(
    shards: Shards, hold_id: bytes, op_ids: Sequence[bytes] = (), spared: Collection[bytes] = ()
) -> tuple[dict[int, Sight], bool]:
    """See a hold with nothing of it on its way, and say whether units have been lost on it.

    What is on its way is ended, but for transits whose digests are `spared`. Raises Unavailable when
    others begin new ones again and again.
    """
    for _ in range(ROUNDS):
        sights = await shards.sights(hold_id, shards.asked_for(0), op_ids)
        holders = [shard for shard, sight in sights.items() if sight.hold is not None]
        ended = await every(
            _end(shards, hold_id, holders, target, number, each.hold)
            for target, sight in sights.items()
            for number, each in enumerate(sight.waiting)
            if each.hold is not None and each.digest not in spared
        )
        if _End.CHANGED not in ended:
            return sights, _End.LOST in ended
    raise Unavailable("the hold is moved again and again")


async def seen(shards: Shards, hold_id: bytes, asked: Sequence[int]) -> list[Hold]:
    """Look a hold's parts up for a reader: what has left a shard is still of the hold, as it waits.

    Nothing is ended or changed. Each shard says in one breath what it has and what has left it, so
    units are not seen twice while they wait; they may be while they arrive. When some have left for a
    place that was not taken yet when its shard was asked, all are asked again (once: the shard may have
    forgotten it); this is missed only where another place was taken there before that one, and since.
    """
    looked_at = list(asked)
    taken = dict.fromkeys(looked_at, 0)  # how many places there were, by target
    waits: dict[tuple[int, int], Hold] = {}
    missed: set[tuple[int, int]] = set()  # next places that units have left for
    for _ in range(ROUNDS):
        ways = [*waits, *taken.items()]  # also to the next place at each target
        leaves = _leave_ids(hold_id, ways)
        sights = await shards.sights(hold_id, looked_at, leaves)
        have_gone = {op_id for sight in sights.values() for op_id in sight.done}
        left = {way for way, op_id in zip(ways, leaves, strict=True) if op_id in have_gone}
        waits = {
            (target, number): each.hold
            for target, sight in sights.items()
            for number, each in enumerate(sight.waiting)
            if each.hold is not None and each.hold.state in _WAITS
        }
        now = {target: len(sight.waiting) for target, sight in sights.items()}
        if now == taken and left & taken.items() <= missed:
            parts = [sights[shard].hold for shard in asked]
            parts += [hold for way, hold in waits.items() if way in left]
            return [part for part in parts if part is not None]
        missed = left & taken.items()
        looked_at = shards.asked_for(0)
        taken = dict.fromkeys(looked_at, 0) | now
    raise Unavailable("the hold is moved again and again")


async def _end(
    shards: Shards,
    hold_id: bytes,
    holders: Sequence[int],
    target: int,
    number: int,
    waits: Hold,
) -> _End:
    """End a transit as far as it is not over."""
    if waits.state not in _WAITS:
        return _End.NEVER_LEFT
    place = place_id(hold_id, number)
    told = await every(leave(shards, source, target, place, hold_id, ()) for source in holders)
    left = [source for source, it in zip(holders, told, strict=True) if not any(it.status)]
    have_left = bool(left)
    if waits.state == HoldState.EXPIRED:
        return _End.LOST if have_left else _End.NEVER_LEFT
    for source, it in zip(holders, told, strict=True):
        if source in left:
            await keep(shards, source, target, place, hold_id, waits, it.now_ns)
    answer = await arrive(shards, target, place, hold_id, waits, have_left=have_left)
    return _End.LOST if have_left and any(answer.status) else _End.CHANGED

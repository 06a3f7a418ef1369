"""What a client knows of a hold that moves about, and the judgement.

A hold may be in parts on several shards, and while it moves others call on it: by another gateway,
or at a shard itself. What is demanded here is what each of them may rely on.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, pairwise, takewhile
from typing import Final, NamedTuple

from actors.parts import step_id
from actors.ports import Position
from actors.transits import place_id
from engine.operations import Kind, Request, column_of
from engine.status import Status
from engine.views import Hold, HoldState
from tests.sim.oracle import Ledger

Ledgers = Mapping[int, Ledger]
Places = Counter[tuple[int, int]]
"""Units of (SKU, location)."""

_TAKING: Final = (Kind.RELEASE, Kind.CANCEL, Kind.RESERVE)  # and not giving to another place


class Span(NamedTuple):
    """From when to when a call was under way."""

    begun_s: float
    ended_s: float

    def overlaps(self, other: "Span") -> bool:
        return self.begun_s <= other.ended_s and other.begun_s <= self.ended_s


class Said(NamedTuple):
    """A call on the hold, but for moves, and whether it was answered OK.

    `is_whole`: it was about all of the hold. A RESERVE is in place of it.
    """

    kind: Kind
    is_whole: bool
    is_done: bool
    span: Span


class Look(NamedTuple):
    """A moment at which no call is under way: where the streams end, by shard.

    `places` is where the hold must be now, if it lives, or None where that is not known;
    `is_unchanged`: it is where it was at the look before.
    """

    ends: Mapping[int, Position]
    places: Places | None
    is_unchanged: bool = False


class Move(NamedTuple):
    """A move and its answer, a status a line; `ends` is where the streams ended then, by shard."""

    request: Request
    status: bytes
    span: Span
    ends: Mapping[int, Position]

    @property
    def is_sold_out(self) -> bool:
        """Whether it was about all of the hold, and refused for want of stock."""
        return "sku" not in self.request.columns and Status.INSUFFICIENT_STOCK in self.status

    @property
    def is_linked(self) -> bool:
        """Whether its lines are to be moved together."""
        return bool(column_of(self.request, "flags").any())

    @property
    def to(self) -> int:
        return int(self.request.columns["location"][0])


@dataclass(slots=True)
class Journey:
    """A hold, from its reserve on. All calls on it are sent until they are answered."""

    hold_id: bytes
    home: Places
    said: list[Said] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    @property
    def units(self) -> Counter[int]:
        """How many units of each SKU it is of."""
        return _by_sku(self.home)

    def said_of(self, *kinds: Kind) -> list[Said]:
        return [said for said in self.said if said.kind in kinds]


def judge_journey(journey: Journey, ledgers: Ledgers) -> list[str]:
    """What is wrong with a hold that moved about, when all is quiet."""
    wrong = [
        *_judge_units(journey, ledgers),
        *_judge_looks(journey, ledgers),
        *_judge_waiting(journey, ledgers),
        *_judge_linked(journey),
        *_judge_refused(journey, ledgers),
        *_judge_end(journey, _sold(_parts(journey, ledgers))),
    ]
    return [f"hold {journey.hold_id.hex()}: {each}" for each in wrong]


def _judge_units(journey: Journey, ledgers: Ledgers) -> Iterator[str]:
    """At no moment there is more of it than was reserved, in all places together."""
    blocks = sorted(
        (
            (ledger.stream.written_at[index], shard, hold)
            for shard, ledger in ledgers.items()
            for index, hold in _versions(journey, ledger)
        ),
        key=lambda block: block[0],
    )
    parts: dict[int, Hold] = {}
    for at_s, shard, hold in blocks:
        parts[shard] = hold
        held = _by_sku(_held(parts)) + _by_sku(_sold(parts))
        if too_many := held - journey.units:
            yield f"{dict(too_many)} too many at {at_s:.6f} s: {parts}"
            return


def _judge_looks(journey: Journey, ledgers: Ledgers) -> Iterator[str]:
    """When nothing is under way, all of it is where it must be."""
    if _is_shut_out(journey, ledgers):
        return
    before: Places = Counter()
    for look in journey.looks:
        parts = _parts(journey, ledgers, look.ends)
        here = _held(parts) + _sold(parts)
        is_over = any(part.state == HoldState.EXPIRED for part in parts.values())
        is_over |= any(
            _has_run_out(journey, ledger, look.ends[shard]) for shard, ledger in ledgers.items()
        )
        if look.places is not None and not is_over and here != look.places:
            yield f"is at {dict(here)}, not at {dict(look.places)}"
        if look.is_unchanged and not is_over and here != before:
            yield f"was at {dict(before)}, and a repeated move brought it to {dict(here)}"
        before = here


def _judge_waiting(journey: Journey, ledgers: Ledgers) -> Iterator[str]:
    """Nothing waits to join it when no move is under way, be it done or refused.

    So it is when a move is answered, too, whatever else is done with the hold just then: that would end
    what waits a little later.
    """
    if _is_shut_out(journey, ledgers):
        return
    alone = [
        move
        for move in journey.moves
        if sum(move.span.overlaps(other.span) for other in journey.moves) == 1
    ]
    places = [
        (shard, place)
        for shard, ledger in ledgers.items()
        for place in takewhile(
            ledger.answers.__contains__, (place_id(journey.hold_id, number) for number in count())
        )
    ]
    for ends in [each.ends for each in (*alone, *journey.looks)]:
        for shard, place in places:
            waiting = ledgers[shard].view(place, ends[shard])
            is_live = waiting is not None and waiting.state.is_live
            if is_live and not _is_lost(ledgers[shard], place):
                yield f"{waiting} waits on shard {shard} for a move that is over"


def _is_shut_out(journey: Journey, ledgers: Ledgers) -> bool:
    """Whether its id was used again, for an incoming record on a shard that the hold was not on.

    Then it cannot go there: what is moved there waits until it runs out.
    """
    return any(ledger.machine.incoming(journey.hold_id) for ledger in ledgers.values())


def _has_run_out(journey: Journey, ledger: Ledger, end: Position) -> bool:
    """Whether something of a part was pending after its deadline; others of it may be committed."""
    versions = [each for each in _versions(journey, ledger) if each[0] <= ledger.index_of(end)]
    return any(
        ledger.times_ns[index] > before.deadline_ns and _held({0: before}) - _held({0: after})
        for (_, before), (index, after) in pairwise(versions)
    )


def _is_lost(ledger: Ledger, place: bytes) -> bool:
    """Whether what waits found that the part had expired which it would join: then it runs out too."""
    known = ledger.answers.get(step_id(place, "arrive"))
    return known is not None and Status.HOLD_EXPIRED in known[1].status


def _judge_linked(journey: Journey) -> Iterator[str]:
    """Linked lines are moved together; where they are, looks tell."""
    for move in journey.moves:
        if move.is_linked and any(move.status) and not all(move.status):
            yield f"of linked lines some were moved: {move.status.hex()}"


def _judge_refused(journey: Journey, ledgers: Ledgers) -> Iterator[str]:
    """Nothing of it was ever where no move was done to.

    But that it has expired is also said by a repeat that comes when the move was done. And a move of
    all of it may have to begin anew for another call, when some of it has left, and find the stock gone.
    Of linked lines that leave several shards, others may take some when some have left.
    """
    may_be_done = {Status.OK, Status.HOLD_EXPIRED}
    known = {location for _, location in journey.home}
    others = [each.span for each in (*journey.said, *journey.moves)]
    for move in journey.moves:
        is_raced = (move.is_sold_out or move.is_linked) and sum(
            move.span.overlaps(span) for span in others
        ) > 1
        if is_raced or may_be_done & set(move.status):
            known.add(move.to)
    for ledger in ledgers.values():
        for _, hold in _versions(journey, ledger):
            if not known >= {location for _, location in _places_of(hold)}:
                yield f"{hold} is where no move was done to"
                return


def _judge_end(journey: Journey, sold: Places) -> Iterator[str]:
    """A commit that was acknowledged is of all; one that was refused, of nothing."""
    commits = journey.said_of(Kind.COMMIT)
    takers = journey.said_of(*_TAKING)
    is_taken = any(each.is_done or each.kind == Kind.RESERVE for each in takers)
    is_paid = any(each.is_done and each.is_whole for each in commits)
    if is_paid and not is_taken and _by_sku(sold) != journey.units:
        yield f"its commit was acknowledged, and of {dict(journey.units)} are sold {dict(sold)}"
    if not any(each.is_done for each in commits) and sold:
        yield f"no commit was acknowledged, and {dict(sold)} are sold"
    cancels = [each for each in journey.said_of(Kind.CANCEL) if each.is_whole and each.is_done]
    last_s = max((each.span.ended_s for each in commits), default=0.0)
    is_handed = any(each.is_done for each in journey.said_of(Kind.FULFIL))
    if any(each.span.begun_s >= last_s for each in cancels) and sold and not is_handed:
        yield f"it was cancelled, and {dict(sold)} are sold"


def _parts(
    journey: Journey, ledgers: Ledgers, ends: Mapping[int, Position] | None = None
) -> dict[int, Hold]:
    """The parts of the hold by shard, as they were when the streams ended there, or at last."""
    parts = {}
    for shard, ledger in ledgers.items():
        end = ledger.index_of(ledger.at if ends is None else ends[shard])
        holds = [hold for index, hold in _versions(journey, ledger) if index <= end]
        if holds:
            parts[shard] = holds[-1]
    return parts


def _versions(journey: Journey, ledger: Ledger) -> list[tuple[int, Hold]]:
    """How a shard's part was from which block on, but for that it was forgotten at last."""
    versions = ledger.versions.get(journey.hold_id, ())
    return [(index, hold) for index, hold in versions if hold is not None]


def _held(parts: Mapping[int, Hold]) -> Places:
    """What is pending."""
    return +sum((_units(hold, "pending") for hold in parts.values()), Counter())


def _sold(parts: Mapping[int, Hold]) -> Places:
    """What is committed or was handed over."""
    names = ("committed", "fulfilled")
    return +sum((_units(hold, name) for hold in parts.values() for name in names), Counter())


def _places_of(hold: Hold) -> Places:
    return _held({0: hold}) + _sold({0: hold})


def _units(hold: Hold, name: str) -> Places:
    units: Places = Counter()
    for line in hold.lines:
        units[line.sku, line.location] += getattr(line, name)
    return units


def _by_sku(places: Places) -> Counter[int]:
    units: Counter[int] = Counter()
    for (sku, _), each in places.items():
        units[sku] += each
    return +units

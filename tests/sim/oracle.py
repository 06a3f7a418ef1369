"""What must be true of every history, whatever went wrong on the way.

The journals are the truth: what the stream server ever took, replayed through the reference machine.
Everything that a shard answered, showed or recovered to is held against that.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actors.parts import step_id
from actors.ports import GENESIS, Position
from actors.recovery import answers_of
from actors.returns import NOT_FROM_HERE
from actors.shard import LEASE_S
from actors.transits import ROUNDS
from engine import limits, reference
from engine.block import AfterImage, Block, decode
from engine.framing import crc_of
from engine.machine import Outcome
from engine.operations import Answer, Flag, Kind, Request, line_id, pair_to_id
from engine.reference import ReferenceMachine
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import HoldState
from tests.sim.server import Stream

if TYPE_CHECKING:
    from tests.sim.world import ShardHost, World

HASH_EVERY: Final = 16  # blocks: the reference counts its hash from scratch
_NOT_ASKED = Status.INVALID_KIND
_OK, _REUSED = int(Status.OK), int(Status.OP_ID_REUSED)
_NEVER: Final = 1 << 62
INCOMING: Final = b"incoming "
_LINKED: Final = (Kind.RESERVE, Kind.RETURN)  # kinds whose lines may be linked to the next one


class Wrong(AssertionError):  # noqa: N818 - a finding
    """The simulation found a fault; says which rule was broken, and where."""


def demand(holds: bool, what: str) -> None:
    """State a rule."""
    if not holds:
        raise Wrong(what)


@dataclass(slots=True)
class Asked:
    """A read that is under way: `floor` had been acknowledged when it came."""

    host: "ShardHost"
    at_s: float
    floor: Position
    sure: bool


@dataclass(slots=True)
class Seen:
    """A read that was answered, by the owner of `epoch`, while the stream ended at `ceiling`.

    `found` maps cells (sku, location) and ids of holds to what was shown of them.
    """

    asked: Asked
    answered_s: float
    epoch: int
    ceiling: Position
    found: Mapping[Any, Any]


@dataclass(slots=True)
class Ledger:
    """One shard's journal, replayed block by block through the reference machine."""

    shard: int
    stream: Stream
    machine: ReferenceMachine
    positions: list[Position] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)  # of the blocks, by the shard's clock
    answers: dict[bytes, tuple[bytes, Answer]] = field(default_factory=dict)  # with the digest
    requests: dict[bytes, Request] = field(default_factory=dict)  # that were answered so
    deadlines: dict[bytes, int] = field(default_factory=dict)
    sold: set[bytes] = field(default_factory=set)  # ids of sales that had their effect
    # What each cell and hold was like from which block on: [(index of the block, view)].
    # An incoming record is there under its id with INCOMING before it.
    versions: dict[Any, list[tuple[int, Any]]] = field(default_factory=dict)
    _pending: dict[bytes, None] = field(default_factory=dict)
    _chain: int = 0
    _checked: int = 0  # blocks up to the last one whose hash was compared
    _broken: Wrong | None = None  # what the replay stopped at

    def advance(self, upto: Position | None = None) -> None:
        """Replay what the stream has beyond what was replayed, and check each block."""
        if self._broken is not None:
            raise self._broken
        history = self.stream.history
        try:
            while len(self.positions) < len(history):
                position, payload = history[len(self.positions)]
                if upto is not None and position > upto:
                    break
                self._take(position, payload)
            self._check_hash()
        except Wrong as wrong:
            self._broken = wrong
            raise

    @property
    def at(self) -> Position:
        return self.positions[-1] if self.positions else GENESIS

    def index_of(self, position: Position) -> int:
        """The place of the newest block that is not after a position; -1: before all."""
        return bisect_right(self.positions, position) - 1

    def view(self, name: Any, at: Position) -> Any:
        """What a cell or a hold was like after the block at a position; None when there was none."""
        kept = self.versions.get(name, [])
        found = bisect_right(kept, self.index_of(at), key=lambda version: version[0])
        return kept[found - 1][1] if found else None

    def _take(self, position: Position, payload: bytes) -> None:
        block = decode(payload)
        told = f"shard {self.shard}, block {position}"
        demand(
            (block.shard, block.epoch, block.seq) == (self.shard, position.epoch, position.seq),
            f"{told}: the block says it is another one",
        )
        if position.seq == 0:
            demand(position == self.at.opening(), f"{told}: opens after {self.at}")
            demand(not block.requests, f"{told}: an opening block has no requests")
        else:
            demand(position == self.at.next(), f"{told}: follows {self.at}")
            demand(block.previous_crc == self._chain, f"{told}: the chain is broken")
            self._apply(block, told)
        self._chain = crc_of(payload)
        self.positions.append(position)
        self.times_ns.append(block.now_ns)
        if position.seq and len(self.positions) % HASH_EVERY == 0:
            self._check_hash()

    def _apply(self, block: Block, told: str) -> None:
        machine, index = self.machine, len(self.positions)
        machine.set_sku_limit(block.sku_limit)
        for place in block.places:
            given = asdict(place)
            machine.set_location(given.pop("location"), **given)
        outcome = machine.apply(block.now_ns, block.requests)
        demand(
            block.status.tobytes() == b"".join(answered.status for answered in outcome.answers),
            f"{told}: other statuses than the rules give",
        )
        demand(block.expired == outcome.expired, f"{told}: expired other holds than are due")
        demand(block.endangered == outcome.endangered, f"{told}: endangers other holds")
        touched: dict[bytes, None] = dict(self._pending)
        answers = answers_of(
            block.requests, _as_columns(block, outcome), block.now_ns, self.at.next()
        )
        for request, answer in zip(block.requests, answers, strict=True):
            demand(request.op_id not in self.answers, f"{told}: {request.op_id.hex()} came before")
            self.answers[request.op_id] = request.digest, answer
            self.requests[request.op_id] = request
            self._note_holds(request, answer.status, block.now_ns, touched, told)
        for hold_id in touched:
            hold = machine.hold(hold_id)
            self._keep(hold_id, index, hold)
            self._keep(INCOMING + hold_id, index, machine.incoming(hold_id))
            if hold is not None and hold.state == HoldState.PENDING:
                self._pending[hold_id] = None
            else:
                self._pending.pop(hold_id, None)
        for key, cell in machine.cells.items():
            self._keep(key, index, cell)

    def _note_holds(
        self, request: Request, status: bytes, now_ns: int, touched: dict[bytes, None], told: str
    ) -> None:
        """Which holds a request is about; no commit after a deadline, no sale a second time."""
        columns = {name: column.tolist() for name, column in request.columns.items()}
        zeros = [0] * request.lines
        kinds, flags, values, high, low = (
            columns.get(name, zeros) for name in ("kind", "flags", "value", "hold_hi", "hold_lo")
        )
        made = line_id(request.op_id, 0)  # by the order that the line is of
        for i, kind in enumerate(kinds):
            named = pair_to_id(high[i], low[i])
            if i and not (kinds[i - 1] in _LINKED and flags[i - 1] & Flag.LINKED):
                made = line_id(request.op_id, i)
            touched[named] = touched[made] = None
            if kind == Kind.SALE and not status[i] and any(named):
                demand(named not in self.sold, f"{told}: sale {named.hex()} had its effect before")
                self.sold.add(named)
            if kind == Kind.COMMIT and not status[i] and not flags[i] & Flag.RE_RESERVE:
                told_late = f"{told}: a hold was committed after its deadline"
                demand(now_ns <= self.deadlines[named], told_late)
            deadline_ns = now_ns + values[i] * limits.NS_PER_MS
            if kind == Kind.ADD_LINE and i and flags[i - 1] & Flag.LINKED:  # as where it comes from
                deadline_ns = self.deadlines.get(pair_to_id(high[i - 1], low[i - 1]), 0)
            if kind == Kind.RESERVE:
                self.deadlines.setdefault(made, deadline_ns)  # the first line's counts
            if kind in (Kind.EXTEND, Kind.ADD_LINE) and not status[i]:  # it never comes nearer
                self.deadlines[named] = max(self.deadlines.get(named, 0), deadline_ns)

    def _keep(self, name: Any, index: int, view: Any) -> None:
        kept = self.versions.setdefault(name, [])
        if not kept or kept[-1][1] != view:
            kept.append((index, view))

    def _check_hash(self) -> None:
        """Compare the hash in the newest block; it covers all before."""
        if self._checked == len(self.positions):
            return
        self._checked = len(self.positions)
        for position, payload in reversed(self.stream.history[: self._checked]):
            if position.seq:
                demand(
                    decode(payload).state_hash == self.machine.state_hash,
                    f"shard {self.shard}, block {position}: another state than the rules give",
                )
                return


def _as_columns(block: Block, told: reference.Outcome) -> Outcome:
    """What the reference answered to a block, as a shard has it."""
    granted = [
        units
        for request, answered in zip(block.requests, told.answers, strict=True)
        for units in answered.granted or [0] * request.lines
    ]
    available = [units for answered in told.answers for units in answered.available]
    return Outcome(
        block.status,
        np.array(available, "<i8"),
        told.expired,
        AfterImage(np.zeros(0, np.int32), 0, np.zeros(0, np.int64), {}),
        np.array(granted, "<i8"),
        told.endangered,
    )


class Oracle:
    """Watches a world, and judges it."""

    def __init__(self, world: "World", streams: dict[int, Stream]) -> None:
        from tests.sim.world import BOUNDS

        self.world = world
        self.ledgers = {
            shard: Ledger(
                shard,
                stream,
                ReferenceMachine(**BOUNDS),
            )
            for shard, stream in streams.items()
        }
        self.wrong: list[Wrong] = []  # found while it ran
        self._acknowledged = dict.fromkeys(streams, GENESIS)
        self._answers: list[tuple[int, Request, Answer]] = []
        self._reads: list[tuple[int, Seen]] = []
        self.recoveries = 0

    # --- while it runs ----------------------------------------------------------------------------

    def recovered(self, host: "ShardHost") -> None:
        """A shard begins to serve: its state is that of the journal."""
        assert host.shard is not None
        self.recoveries += 1
        self.world.log(f"{host.process.name} serves from {host.shard.at}")
        try:
            self._check_state(host)
        except Wrong as wrong:
            self.wrong.append(wrong)

    def answered(self, host: "ShardHost", request: Request, answer: Answer) -> None:
        """An answer leaves a shard: what it says is durable."""
        shard = host.number
        self._answers.append((shard, request, answer))
        if set(answer.status) == {_REUSED}:
            return
        position = Position(answer.epoch, answer.seq)
        history = self.ledgers[shard].stream.history
        at = bisect_left(history, position, key=lambda entry: entry[0])
        if at == len(history) or history[at][0] != position:
            told = (
                f"shard {shard} answered {request.op_id.hex()} before block {position} is durable"
            )
            self.wrong.append(Wrong(told))
        self._acknowledged[shard] = max(self._acknowledged[shard], position)

    def asked(self, host: "ShardHost", *, sure: bool = False) -> Asked:
        """A read comes to a shard."""
        return Asked(host, self.world.loop.now_s, self._acknowledged[host.number], sure)

    def seen(self, asked: Asked, found: Mapping[Any, Any]) -> None:
        """A read leaves a shard with what it found."""
        shard = asked.host.shard
        assert shard is not None
        last = self.ledgers[shard.number].stream.last or GENESIS
        seen = Seen(asked, self.world.loop.now_s, shard.at.epoch, last, found)
        self._reads.append((shard.number, seen))

    def ends(self) -> dict[int, Position]:
        """Where each shard's stream ends now."""
        return {shard: each.stream.last or GENESIS for shard, each in self.ledgers.items()}

    # --- afterwards -------------------------------------------------------------------------------

    def judge(self) -> None:
        """Raise the first thing that is wrong with the journals, the answers or the reads."""
        if self.wrong:
            raise self.wrong[0]
        for ledger in self.ledgers.values():
            ledger.advance()
        for shard, request, answer in self._answers:
            self._judge_answer(self.ledgers[shard], request, answer)
        for shard, ledger in self.ledgers.items():
            self._judge_reads(ledger, [seen for number, seen in self._reads if number == shard])

    def judge_end(self) -> None:
        """When all is quiet: nothing is pending, and each shard's state is its journal's."""
        self.judge()
        for shard, ledger in self.ledgers.items():
            demand(ledger.machine.holds_open == 0, f"shard {shard}: a hold outlived its deadline")
            host = self.world.hosts[shard]
            self._check_state(host)
            demand(ledger.at == ledger.stream.last, f"shard {shard}: not all is replayed")
            machine = host.shard.machine if host.shard else None
            assert machine is not None
            for key, cell in ledger.machine.cells.items():
                demand(machine.cell(*key) == cell, f"shard {shard}: cell {key} is another")
            for hold_id, hold in ledger.machine.holds.items():
                demand(machine.hold(hold_id) == hold, f"shard {shard}: hold {hold_id.hex()}")
            for record_id, record in ledger.machine.incoming_records.items():
                same = machine.incoming(record_id) == record
                demand(same, f"shard {shard}: incoming record {record_id.hex()}")

    def _check_state(self, host: "ShardHost") -> None:
        assert host.shard is not None
        machine, at, ledger = host.shard.machine, host.shard.at, self.ledgers[host.number]
        told = f"{host.process.name} at {at}"
        wrong = machine.audit()
        demand(not wrong, f"{told}: {wrong}")
        if ledger.at <= at:
            ledger.advance(at)
            same = machine.state_hash == ledger.machine.state_hash
            demand(same, f"{told}: another state than its journal leads to")

    def _judge_answer(self, ledger: Ledger, request: Request, answer: Answer) -> None:
        told = f"shard {ledger.shard}, {request.op_id.hex()}"
        known = ledger.answers.get(request.op_id)
        if set(answer.status) == {_REUSED}:
            base = ledger.answers.get(request.op_id[:14] + b"\0\0")
            taken = base is not None and request.op_id[14:] != b"\0\0"
            demand(
                taken or (known is not None and known[0] != request.digest),
                f"{told}: refused as used for other content, which it was not",
            )
            return
        demand(known is not None, f"{told}: an acknowledged operation is not in the journal")
        assert known is not None
        demand(known[0] == request.digest, f"{told}: answered as another request")
        demand(known[1] == answer, f"{told}: answered {answer}, the journal says {known[1]}")

    def _judge_reads(self, ledger: Ledger, reads: list[Seen]) -> None:
        """Reads show one moment each, none before what was acknowledged or shown when they came."""
        answered: list[float] = []
        shown: list[int] = []  # the newest moment that reads answered by then have shown for sure
        for seen in sorted(reads, key=lambda each: each.answered_s):
            low, high = self._window(ledger, seen)
            before = bisect_left(answered, seen.asked.at_s)
            if seen.epoch == seen.ceiling.epoch and before:
                low = max(low, shown[before - 1])
            moment = _first_moment(ledger, seen.found, low, high)
            demand(
                moment is not None,
                f"shard {ledger.shard}: {seen.asked.host.process.name} showed {seen.found} at "
                f"{seen.answered_s:.6f} s, which was so at no moment from block "
                f"{ledger.positions[low] if low >= 0 else GENESIS} to {ledger.positions[high]}",
            )
            assert moment is not None
            answered.append(seen.answered_s)
            shown.append(max(moment, shown[-1] if shown else -1))

    def _window(self, ledger: Ledger, seen: Seen) -> tuple[int, int]:
        """From which block to which a read may show the state.

        An owner that was fenced off and does not know it yet may show what it had, for LEASE_S.
        """
        if seen.epoch == seen.ceiling.epoch:
            return ledger.index_of(seen.asked.floor), ledger.index_of(seen.ceiling)
        fenced = ledger.index_of(Position(seen.epoch, _NEVER)) + 1
        fenced_s = ledger.stream.written_at[fenced]
        demand(
            seen.asked.at_s <= fenced_s + (0 if seen.asked.sure else LEASE_S),
            f"{seen.asked.host.process.name}: was fenced off at {fenced_s:.6f} s and still answered "
            f"a read that came at {seen.asked.at_s:.6f} s",
        )
        return ledger.index_of(Position(seen.epoch, 0)), fenced - 1


def _first_moment(ledger: Ledger, found: Mapping[Any, Any], low: int, high: int) -> int | None:
    """The first block from `low` to `high` after which all was as found; None if none is."""
    spans = [(low, high)]
    for name, view in found.items():
        kept = [(-1, None), *ledger.versions.get(name, ())]
        ends = [index - 1 for index, _ in kept[1:]] + [_NEVER]
        fits = [(begin, end) for (begin, each), end in zip(kept, ends, strict=True) if each == view]
        spans = [
            (max(a, c), min(b, d)) for a, b in spans for c, d in fits if max(a, c) <= min(b, d)
        ]
    return min((begin for begin, _ in spans), default=None)


# --- what clients were told -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A write that a client got its answer to; `ends` is where the streams ended then, by shard."""

    method: str  # of the router or of `actors.transfers`
    request: Request
    args: Sequence[Any]
    answer: Answer
    ends: Mapping[int, Position]


def judge_call(
    ledgers: Mapping[int, Ledger], shard_map: ShardMap, call: Call, *, is_alone: bool
) -> None:
    """A client's answer is made of the shards' answers in their journals, and of nothing else.

    And what it says is so when it comes, if it `is_alone`: no repeat, and nothing races with it.
    """
    method, request, told = call.method, call.request, call.answer
    name = f"{method} {request.op_id.hex()}"
    if method in {"ship", "move", "exchange"}:
        return  # of several steps, which the judgements of transfers, moves and exchanges count
    if method in {"on_hold", "lose"}:
        fits = _fits_hold(ledgers, request, told, is_alone=is_alone)
        demand(fits, f"{name}: the shards did not say {told}")
        if "location" not in request.columns and is_alone:
            _judge_whole_hold(ledgers, call)
        return
    flags = int(request.columns["flags"][0]) if "flags" in request.columns else 0
    if method == "reserve" and flags & Flag.SUPERSEDE:
        if is_alone:
            _judge_superseding(ledgers, call)
    else:
        expected = _expected_lines(ledgers, shard_map, method, request)
        if method == "returned":
            expected = _with_claims(ledgers, shard_map, request, expected)
        told_other = f"{name}: told {told.status!r}, the shards said {expected!r}"
        demand(told.status == expected, told_other)
        if method in {"reserve", "submit"}:
            _judge_joined(ledgers, shard_map, call)
    if method == "reserve" and all(told.status) and _REUSED not in told.status:
        _judge_gone(ledgers, call, request.op_id, "refused")


def _judge_joined(ledgers: Mapping[int, Ledger], shard_map: ShardMap, call: Call) -> None:
    """Of what several shards answer the earliest time is told, and of each line what it was granted."""
    method, request, told = call.method, call.request, call.answer
    name = f"{method} {request.op_id.hex()}"
    granted = np.zeros(request.lines, "<i8")
    times_ns, is_partial = [], False
    for shard, lines in _places(shard_map, method, request).items():
        digest, answer = _said(ledgers[shard], request.op_id)
        if digest != request.digest:
            return
        times_ns.append(answer.now_ns)
        if answer.granted:
            is_partial = True
            own = np.frombuffer(answer.granted, "<i8")
            for line, place in lines:
                granted[line] = own[place]
    if method == "reserve" and set(told.status) - _harmless(request):
        granted[:] = 0  # it is held nowhere
    earliest_ns = min(times_ns)
    demand(told.now_ns == earliest_ns, f"{name}: told {told.now_ns}, the earliest is {earliest_ns}")
    expected = granted.tobytes() if is_partial else b""
    told_other = f"{name}: told {told.granted!r} as granted, the shards said {expected!r}"
    demand(told.granted == expected, told_other)


def _judge_gone(ledgers: Mapping[int, Ledger], call: Call, hold_id: bytes, why: str) -> None:
    """Nothing of a hold is left when a call is answered."""
    for shard, ledger in ledgers.items():
        hold = ledger.view(hold_id, call.ends[shard])
        is_live = hold is not None and hold.state.is_live
        demand(not is_live, f"{hold_id.hex()}: was {why}, and shard {shard} still held its part")


def _judge_superseding(ledgers: Mapping[int, Ledger], call: Call) -> None:
    """The new hold or the older one, not both; and not less than the older one, on one shard."""
    columns, op_id = call.request.columns, call.request.op_id
    older = pair_to_id(int(columns["hold_hi"][0]), int(columns["hold_lo"][0]))
    if not all(call.answer.status):
        held = [each for each in ledgers.values() if each.view(op_id, call.ends[each.shard])]
        demand(bool(held), f"{op_id.hex()}: told as held, and no shard has it")
        _judge_gone(ledgers, call, older, "superseded")
    parts = [each.view(older, call.ends[each.shard]) for each in ledgers.values()]
    parts = [hold for hold in parts if hold is not None]
    if not all(call.answer.status):
        may_be_paid = any(hold.state == HoldState.EXPIRED for hold in parts)
        demand(not may_be_paid, f"{older.hex()}: was superseded, and may still be paid late")
        return
    is_released = len(parts) == 1 and parts[0].state == HoldState.RELEASED
    demand(not is_released, f"{op_id.hex()}: refused, and {older.hex()} is released")


# In which states a call on a whole hold, when it is answered OK, leaves no part of it.
_LEFT_BEHIND: Final = {
    Kind.COMMIT: (HoldState.PENDING, HoldState.RELEASED, HoldState.EXPIRED),
    Kind.RELEASE: (HoldState.PENDING,),
    Kind.FULFIL: (HoldState.COMMITTED,),
    Kind.CANCEL: (HoldState.COMMITTED,),
    Kind.EXTEND: (),  # it may have been little time
    Kind.UNFULFIL: (),  # what came back stays handed over
    Kind.CANCEL_INCOMING: (HoldState.INCOMING,),
}


_UNCOMMITTED: Final = (Status.HOLD_EXPIRED, Status.HOLD_RELEASED, Status.INSUFFICIENT_STOCK)


def _judge_whole_hold(ledgers: Mapping[int, Ledger], call: Call) -> None:
    """A call on a whole hold reaches all its parts; a commit that is refused leaves none committed."""
    columns, status = call.request.columns, call.answer.status[0]
    hold_id = pair_to_id(int(columns["hold_hi"][0]), int(columns["hold_lo"][0]))
    kind = Kind(int(columns["kind"][0]))
    for shard, ledger in ledgers.items():
        name = INCOMING + hold_id if kind == Kind.CANCEL_INCOMING else hold_id
        hold = ledger.view(name, call.ends[shard])
        told = f"{kind.name} of hold {hold_id.hex()}: was told {Status(status).name}"
        left = hold is not None and not status and hold.state in _LEFT_BEHIND[kind]
        demand(not left, f"{told}, and left shard {shard} out")
        if kind == Kind.EXTEND and not status and hold and hold.state == HoldState.PENDING:
            least_ns = call.answer.now_ns + int(columns["value"][0]) * limits.NS_PER_MS
            until = f"{told}, and shard {shard} has it until {hold.deadline_ns} only"
            demand(hold.deadline_ns >= least_ns, until)
        if kind == Kind.COMMIT and status in _UNCOMMITTED:
            is_left = hold is not None and any(line.committed for line in hold.lines)
            demand(not is_left, f"{told}, and is committed on shard {shard}")


def _fits_hold(
    ledgers: Mapping[int, Ledger], request: Request, told: Answer, *, is_alone: bool
) -> bool:
    """A commit is done when all parts did it, what is about the rest of a hold when one did.

    A commit that is not alone may find parts elsewhere that were refused where they had been.
    """
    kind = request.columns["kind"][0]
    ids = [request.op_id]
    if kind == Kind.EXTEND:
        ids += [step_id(request.op_id, f"all {number}") for number in range(ROUNDS)]
    if kind in (Kind.COMMIT, Kind.RELEASE):  # what was on its way at first
        ids += [step_id(request.op_id, f"again {number}") for number in range(ROUNDS)]
    known = [
        each.answers[op_id] for each in ledgers.values() for op_id in ids if op_id in each.answers
    ]
    if kind == Kind.COMMIT:
        # A part of which nothing is pending is asked whether some of it ran out, and has no other say.
        known = [each for each in known if each[1].status != bytes((Status.HOLD_NOT_PENDING,))]
    # Who is asked to give up all that is on its way is asked for each record, in one request.
    done = [_OK in answer.status for digest, answer in known if digest == request.digest]
    if not is_alone and kind in (Kind.COMMIT, Kind.EXTEND):
        return any(told.status) or any(done)
    if any(told.status):
        return not all(done) or len(done) < max(len(known), 1)
    return bool(done) and (all(done) if kind == Kind.COMMIT else any(done))


def _expected_lines(
    ledgers: Mapping[int, Ledger], shard_map: ShardMap, method: str, request: Request
) -> bytes:
    """Line by line, the status in the journal of the shard that the line belongs to."""
    expected = bytearray(request.lines)
    for shard, lines in _places(shard_map, method, request).items():
        digest, answer = _said(ledgers[shard], request.op_id)
        for line, place in lines:
            expected[line] = answer.status[place] if digest == request.digest else _REUSED
    if method != "reserve":
        return bytes(expected)
    return _as_one_order(ledgers, request, expected, _owners(shard_map, method, request))


def _places(shard_map: ShardMap, method: str, request: Request) -> dict[int, list[tuple[int, int]]]:
    """Of each shard its lines, with the places that they have in the part it is asked for."""
    owners = _owners(shard_map, method, request)
    named = np.isin(request.columns["kind"], (Kind.RESERVE, Kind.EXPECT)).any()
    keeps_places = method != "reserve" and named
    found: dict[int, list[tuple[int, int]]] = {}
    for line, owner in enumerate(owners):
        lines = found.setdefault(owner, [])
        lines.append((line, line if keeps_places else len(lines)))
    return found


def _said(ledger: Ledger, op_id: bytes) -> tuple[bytes, Answer]:
    """What a shard answered to an operation or a step, with the digest."""
    demand(op_id in ledger.answers, f"shard {ledger.shard} was never asked for {op_id.hex()}")
    return ledger.answers[op_id]


def _as_one_order(
    ledgers: Mapping[int, Ledger], request: Request, said: bytes, owners: Sequence[int]
) -> bytes:
    """What the lines of an order are told, when the shards said this of their own."""
    flags = int(request.columns["flags"][0]) if "flags" in request.columns else 0
    harmless = _harmless(request)
    held = {owner for owner, status in zip(owners, said, strict=True) if not status}
    uncommitted: dict[int, int] = {}  # shards that held it and then would not commit it
    if len(set(owners)) > 1 and flags & Flag.COMMIT_NOW and set(said) <= harmless:
        step = step_id(request.op_id, "commit")
        told = {shard: _said(ledgers[shard], step)[1].status[0] for shard in sorted(held)}
        uncommitted = {shard: status for shard, status in told.items() if status}
    if set(said) <= harmless and not uncommitted:
        return bytes(said)
    expected = bytearray(said)
    for i, owner in enumerate(owners):
        if owner in held:
            is_first = owners.index(owner) == i
            why = uncommitted.get(owner, Status.LINKED_LINE_REFUSED)
            expected[i] = why if is_first else Status.LINKED_LINE_REFUSED
    # What was not asked for its part in time: a gateway has finished the order when its time was over.
    late = {owner for owner, status in zip(owners, said, strict=True) if status == _NOT_ASKED}
    is_refused = bool({*said} - harmless - {_NOT_ASKED})
    for owner in late:
        places = [i for i, each in enumerate(owners) if each == owner]
        for i in places:
            expected[i] = Status.LINKED_LINE_REFUSED
        if not is_refused:
            expected[places[0]] = Status.HOLD_EXPIRED
    return bytes(expected)


def _harmless(request: Request) -> set[int]:
    """What a line of an order may be told without any other being refused for it."""
    flags = int(request.columns["flags"][0]) if "flags" in request.columns else 0
    return {_OK, int(Status.INSUFFICIENT_STOCK)} if flags & Flag.PARTIAL else {_OK}


def _with_claims(
    ledgers: Mapping[int, Ledger], shard_map: ShardMap, request: Request, said: bytes
) -> bytes:
    """What the lines of a return are told, when the shards to which the goods came said this."""
    expected = bytearray(said)
    owners = _owners(shard_map, "returned", request)
    for i in [i for i, status in enumerate(said) if status in NOT_FROM_HERE]:
        check = step_id(request.op_id, f"check in {i}")
        if check not in ledgers[owners[i]].answers:
            continue  # by the shard's own router, which asks nobody else
        asked = _said(ledgers[owners[i]], check)[1].status
        if asked[0] != Status.LINKED_LINE_REFUSED:
            expected[i] = asked[0]
            continue
        step = step_id(request.op_id, f"claim {i}")
        claims = [each.answers[step][1] for each in ledgers.values() if step in each.answers]
        done = [claim for claim in claims if not claim.status[0]]
        demand(len(done) <= 1, f"{request.op_id.hex()}: line {i} is claimed on two shards")
        if done or _is_claimed_in_parts(ledgers, request, i):
            came = _said(ledgers[owners[i]], step_id(request.op_id, f"in {i}"))
            expected[i] = came[1].status[0]
        else:
            expected[i] = max((each.status[0] for each in claims), default=Status.UNKNOWN_HOLD)
    return bytes(expected)


def _is_claimed_in_parts(ledgers: Mapping[int, Ledger], request: Request, i: int) -> bool:
    """Whether several shards together have noted that all goods of a line come back."""
    step = step_id(request.op_id, f"claim {i} in part")
    claims = [each.answers[step] for each in ledgers.values() if step in each.answers]
    units = sum(int.from_bytes(digest, "little") for digest, told in claims if not told.status[0])
    return units == request.columns["quantity"][i]


def _owners(shard_map: ShardMap, method: str, request: Request) -> list[int]:
    """The shard of each line; in a batch, linked lines go where the first of them goes."""
    columns = request.columns
    owners: list[int] = shard_map.shards_of(columns["sku"], columns["location"]).tolist()
    if method == "submit" and "flags" in columns:
        for i, (kind, flags) in enumerate(zip(columns["kind"], columns["flags"], strict=True)):
            if kind in _LINKED and flags & Flag.LINKED and i + 1 < len(owners):
                owners[i + 1] = owners[i]
    return owners

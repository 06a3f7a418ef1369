"""What actors need of each other and of the outside world, as protocols.

Actors code against this file; the adapters (`adapters.journal`, `adapters.snapshots`) and the fakes
of the tests fulfil it. It must not know what a stream is made of: no Redis, no sockets.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engine.history import History
from engine.operations import Answer, Request
from engine.views import Cell, DatedIncoming, Hold, Incoming


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a block stands in its journal; written `<epoch>-<seq>`, ordered by epoch, then seq.

    `epoch` counts the owners of the stream from 1; `seq` counts the blocks of one epoch, and 0 is
    its opening block.
    """

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<epoch>-<seq>` back. ValueError when it is anything else."""
        epoch, dash, seq = text.partition("-")
        if not (dash and epoch.isascii() and epoch.isdigit() and seq.isascii() and seq.isdigit()):
            raise ValueError(f"a position is <epoch>-<seq>, not {text!r}")
        return cls(int(epoch), int(seq))

    def next(self) -> "Position":
        """Where the block after this one stands, while the epoch lasts."""
        return Position(self.epoch, self.seq + 1)

    def opening(self) -> "Position":
        """Where the next owner opens its epoch."""
        return Position(self.epoch + 1, 0)


GENESIS = Position(0, 0)
"""Before the first block: the first owner of a stream opens it at `1-0`."""

Entry = tuple[Position, bytes]


def shard_name(number: int) -> str:
    """The name of a shard: of its actor, its stream, its snapshots and its entry in the registry."""
    return f"shard-{number}"


class JournalError(Exception):
    """Any of the five ways in which a journal fails its caller."""


class Fenced(JournalError):  # noqa: N818 - a condition of the journal, by the design's word
    """Another owner has written at or behind this position: the caller owns nothing any more.

    A shard says it too, to a gateway that another one has replaced.
    """


class JournalLost(JournalError):  # noqa: N818
    """The stream has vanished, or ends before something that it was known to hold.

    A deleted key, a failover to a replica that lagged. No retry helps; a person must look.
    """


class AppendInDoubt(JournalError):  # noqa: N818
    """It could not be learnt in time whether the block was written. The owner must end itself.

    The block may still turn up, until a new owner has taken over and so shut it out.
    """


class JournalUnavailable(JournalError):  # noqa: N818
    """The journal cannot be reached or refuses to serve; from `append`: nothing was written."""


class Compacted(JournalError):  # noqa: N818
    """Blocks after the asked position have been trimmed away: start again from a snapshot.

    `oldest` is the first position still there, None when there is none.
    """

    def __init__(self, after: Position, oldest: Position | None) -> None:
        super().__init__(f"blocks after {after} were trimmed, the oldest one kept is {oldest}")
        self.after = after
        self.oldest = oldest


class Journal(Protocol):
    """One stream of blocks with one owner at a time; readers as many as like.

    A reader sees a block only when it is durable. Every method may raise `JournalUnavailable`.
    """

    async def first(self) -> Position | None:
        """Tell the oldest position still kept, or None when nothing is."""

    async def last(self) -> Position | None:
        """Tell the newest position ever written, trimmed or not; None when there is no stream."""

    async def take_over(
        self, opening: Callable[[Position], bytes], *, known: Position | None = None
    ) -> Position:
        """Become the owner: open a new epoch, which shuts out every older owner, and return it.

        `opening` makes the opening block for a position; it must hold a nonce, since that is what
        tells two contenders apart, and is called again when another contender was quicker.
        `known` is a position that is known to exist, from a snapshot say.
        Raises JournalLost when the stream ends before `known`, and AppendInDoubt.
        """

    async def append(self, position: Position, payload: bytes) -> None:
        """Write the next block; it is durable when this returns.

        Only the owner may call it, with one call at a time, and `position` must be the successor of
        the last one written (ValueError): streams accept gaps. Raises Fenced, JournalLost,
        AppendInDoubt, and JournalUnavailable, after which the same position may be tried again.
        A call that is cancelled leaves the block in doubt.
        """

    def append_at_once(
        self, position: Position, payload: bytes, meanwhile: Callable[[], object]
    ) -> bool:
        """Write the next block while the event loop stands still, for some ms at most.

        For one small block when nobody else waits. `meanwhile` is called while it is on its way, if
        it is. True: it is durable. False: nothing is known of it yet, and `append` must be called
        with the same block, before anything else: it goes on from there. A journal that cannot do
        this says False. Raises ValueError as `append` does.
        """

    def read(
        self, after: Position | None, upto: Position | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Yield the blocks with after < position ≤ upto; None: from the oldest, to the newest.

        Raises Compacted when blocks right after `after` were trimmed (never with None; GENESIS
        insists on the very first block) and JournalLost when `after` never was in this stream.
        """

    def tail(self, after: Position) -> AsyncGenerator[list[Entry], None]:
        """Yield what follows `after` as it is written, in lists, forever. Raises as `read` does."""

    async def trim(self, before: Position) -> int:
        """Drop the blocks before a position, and return how many they were.

        Only the owner may (ValueError): one that was replaced is Fenced, and has dropped nothing
        since then.
        """

    async def close(self) -> None:
        """Let go of all connections; running reads and tails end with JournalUnavailable."""


class SnapshotsDamaged(Exception):  # noqa: N818
    """Snapshots were saved under this name, and none of them can be read whole."""


class SnapshotsUnavailable(Exception):  # noqa: N818
    """The store cannot be reached or refuses to serve; a save that met this left nothing behind."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did."""

    stored_bytes: int
    oldest: Position  # before it no one needs the journal to recover; GENESIS: all of it is needed


class Snapshots(Protocol):
    """Whole states of shards, each as of one position of the journal that has the same name.

    They are in the hands of the journal's owner: nobody else adds or removes any, and those kept
    only get newer. Every method may raise `SnapshotsUnavailable`.
    """

    async def save(
        self, name: str, chunks: AsyncIterable[bytes], position: Callable[[], Position]
    ) -> Saved:
        """Store a state durably; it shows only when whole. The last two of a name are kept.

        Trim the journal before `Saved.oldest` at most: should the newest snapshot prove damaged,
        the one before it is loaded, and needs the blocks after it. With a first snapshot that is
        the whole journal. One that `load_latest` found damaged does not count as kept.
        A chunk is asked for when the one before it is stored; it must be frozen bytes, not a view
        of live state. Their boundaries are not kept. `position` is asked after the last one.
        Raises Fenced, and changes nothing, unless the journal is still in the epoch of `position`.
        """

    async def newest(self, name: str) -> Position | None:
        """Tell the position of the newest state there is, whole or damaged; None if none is."""

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        """Find the newest whole state: its position and its bytes, in pieces; None if none is.

        The owner's to call: others may find that what they are reading has been removed.
        Raises SnapshotsDamaged when there are some and all are damaged.
        """


class Overloaded(Exception):  # noqa: N818
    """A queue is full; nothing was judged. Try again later, with the same op_id."""


class Unavailable(Exception):  # noqa: N818
    """The shard cannot answer now: it is starting, stopping or gone.

    Whether a request that was under way was applied is not known: send it again with its op_id.
    """


@dataclass(frozen=True, slots=True)
class CellTable:
    """Rows of a shard's cell table as of one block: frozen copies, in order of row.

    `cells` is int64 (n, engine.kernels.CELL_WORDS); its words are named in `engine.kernels`.
    """

    at: Position
    now_ns: int
    cells: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Units that wait at a shard to join a hold which moves there: see `actors.transits`.

    `digest` tells which move they are of, and is empty when that is forgotten; `hold` is None when
    the stock for them was refused.
    """

    digest: bytes
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a shard knows of a hold: its part, what has waited there to join it, by number.

    `digests` are those of the requests with the op_ids that were asked for, as far as it knows them;
    `done` are those of these ids that were refused nothing. All that it has answered in blocks after
    `forgotten` (epoch, number) it knows.
    """

    hold: Hold | None
    waiting: list[Waiting]
    digests: dict[bytes, bytes]
    done: set[bytes]
    forgotten: tuple[int, int]


class ShardLink(Protocol):
    """A shard as the router calls it: the one in this process, or another by way of Ray.

    Every method may raise Overloaded and Unavailable. Reads see durable blocks only.
    """

    @property
    def number(self) -> int:
        """Tell the shard's number, from 0."""

    async def submit(self, request: Request) -> Answer:
        """Apply a request once, and answer when its block is durable.

        A repeated op_id gets its first answer; one re-used for other content gets the status
        OP_ID_REUSED on every line.
        """

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Hold | None:
        """Look up this shard's part of a hold.

        `sure`: whoever decides by it what to write needs the word of the owner as of now, not of
        one that was replaced a moment ago.
        """

    async def sight(self, hold_id: bytes, op_ids: Sequence[bytes] = ()) -> Sight:
        """Tell what this shard knows of a hold, to write by it; so it is `sure` (see `hold`)."""

    async def history(self, hold_id: bytes) -> History:
        """Find the operations on this shard's part of a hold, as far back as the journal reaches.

        It reads the whole journal: for people, not for programs.
        """

    async def incoming(self, incoming_id: bytes, *, sure: bool = False) -> Incoming | None:
        """Look up this shard's part of an incoming record (`sure`: see `hold`)."""

    async def incoming_of(self, names: Sequence[tuple[int, int]]) -> list[DatedIncoming]:
        """Find what is outstanding for cells (sku id, location id), by cell and date."""

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id), in order; None where there is none."""

    async def table(self, locations: Sequence[int] | None = None) -> CellTable:
        """Copy the rows of some locations, or all rows (then index i is row i)."""

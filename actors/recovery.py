"""How a shard gets its state back: the newest snapshot, then every block behind it, each one checked.

It ends as the owner of the journal, with the state as of its own opening block. What it does not know:
requests, callers, and how to go on from there (`actors.shard`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from actors.ports import (
    GENESIS,
    Compacted,
    Fenced,
    Journal,
    Position,
    Snapshots,
    SnapshotsDamaged,
    shard_name,
)
from engine import snapshot
from engine.block import Block, decode, encode
from engine.framing import crc_of
from engine.machine import Machine, Outcome
from engine.memory import AnswerMemory
from engine.operations import Answer, Request
from engine.shortages import of_request

_log = structlog.get_logger()


class Recovery(Exception):  # noqa: N818 - a condition, for people
    """The journal and the snapshot do not lead to one state: a person must look."""


@dataclass(slots=True)
class Recovered:
    """Where recovery ended: the opening block of the new epoch, its CRC32C, the blocks applied."""

    at: Position
    chain: int
    blocks: int = 0


async def recover(
    shard: int,
    journal: Journal,
    snapshots: Snapshots,
    machine: Machine,
    memory: AnswerMemory,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Recovered:
    """Fill a new machine and memory, and become the owner of the journal.

    The take-over comes before all else: what an older owner still wrote by then is read too, and
    nothing can follow it. From then on nobody but a yet newer owner saves snapshots or trims the
    journal, so what is loaded and what is read fit together. Raises Recovery, Fenced when another
    one took over meanwhile, and what journal and snapshots raise.
    """

    def opening(position: Position) -> bytes:
        # Nothing is known of the state yet. The nonce tells contenders for the position apart.
        nonce = random_bytes(16)
        return encode(Block(shard, position.epoch, position.seq, 0, 0, 0, 0, nonce=nonce))[0]

    name = shard_name(shard)
    known = await snapshots.newest(name)
    opened = await journal.take_over(opening, known=known)
    state = await _load(name, snapshots, machine, memory)
    began = state.at
    if began.epoch > opened.epoch:  # that one has saved already
        raise _overtaken(shard, began, opened)
    try:
        async for position, payload in journal.read(state.at, opened):
            block = decode(payload)
            _check(shard, state, position, block)
            if position.seq > 0:
                _reapply(block, position, machine, memory)
            state = Recovered(position, crc_of(payload), state.blocks + 1)
    except Compacted as error:
        last = await journal.last()
        if last is not None and last.epoch > opened.epoch:
            raise _overtaken(shard, last, opened) from error
        unread = "" if known in {None, began} else f", that of {known} cannot be read,"
        raise Recovery(
            f"shard {shard}: blocks are missing: the newest snapshot ends at {began}{unread}"
            f" and the oldest block kept is {error.oldest}"
        ) from error
    if state.at != opened:
        raise Recovery(f"the journal ends at {state.at}, this epoch opens at {opened}")
    return state


def _overtaken(shard: int, newer: Position, opened: Position) -> Fenced:
    return Fenced(f"shard {shard}: {newer} is a newer owner's, this one is {opened}")


async def _load(
    name: str, snapshots: Snapshots, machine: Machine, memory: AnswerMemory
) -> Recovered:
    """Fill machine and memory from the newest snapshot that can be read; without one, nothing.

    All being damaged, or of another version of this program, the journal may still have everything:
    nothing is lost before it says so.
    """
    try:
        found = await snapshots.load_latest(name)
    except SnapshotsDamaged as error:
        _log.warning("snapshots cannot be read", name=name, error=str(error))
        found = None
    if found is None:
        return Recovered(GENESIS, 0)
    at, pieces = found
    try:
        return Recovered(at, snapshot.load(pieces, machine, memory))
    except snapshot.OtherFormat as error:
        _log.warning("the snapshot is of another version", name=name, at=str(at), error=str(error))
        return Recovered(GENESIS, 0)


def _check(shard: int, state: Recovered, position: Position, block: Block) -> None:
    """Whether a block is what its position says, and follows the one before it."""
    if (block.shard, block.epoch, block.seq) != (shard, position.epoch, position.seq):
        raise Recovery(f"block {position} says it is {block.shard}/{block.epoch}-{block.seq}")
    if position.seq == 0:
        # An older owner may write until the new epoch opens, so an opening block names no
        # predecessor; the state hash of the block after it shows whether one is missing.
        if position.epoch <= state.at.epoch:
            raise Recovery(f"epoch {position.epoch} opens after {state.at}")
    elif position != state.at.next() or block.previous_crc != state.chain:
        raise Recovery(f"block {position} does not follow {state.at}")


def _reapply(block: Block, position: Position, machine: Machine, memory: AnswerMemory) -> None:
    """Apply a block again: it must lead to the statuses and the state hash that it says."""
    machine.set_sku_limit(block.sku_limit)
    for place in block.places:
        machine.set_place(place)
    outcome = machine.apply(
        block.now_ns, block.requests, names_endangered=False, expires=block.expired
    )
    outcome.endangered = block.endangered
    if not np.array_equal(outcome.status, block.status):
        raise Recovery(f"block {position}: replay answers otherwise than the journal says")
    if machine.state_hash != block.state_hash:
        raise Recovery(f"block {position}: replay leads to another state hash")
    answers = answers_of(block.requests, outcome, block.now_ns, position)
    for request, answer in zip(block.requests, answers, strict=True):
        memory.remember(request, answer)


def answers_of(
    requests: Sequence[Request], outcome: Outcome, now_ns: int, position: Position
) -> Iterator[Answer]:
    """Cut a block's answers into its requests'."""
    status = outcome.status.tobytes()
    first = 0
    for request in requests:
        end = first + request.lines
        available = outcome.available[first:end].tobytes() if request.want_available else b""
        granted = b""
        if outcome.granted is not None and request.is_partial:
            granted = outcome.granted[first:end].tobytes()
        endangered = of_request(outcome.endangered, first, end) if outcome.endangered else ()
        yield Answer(
            status[first:end], available, now_ns, position.epoch, position.seq, granted, endangered
        )
        first = end

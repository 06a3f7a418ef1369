"""Machines with a rule that is broken.

Rules run compiled, so a rule is broken where blocks enter the machine: what was asked is changed into
what the fault makes of it, or the answer is. A successor does the same when it reads the journal.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from engine.machine import Machine, Outcome
from engine.operations import COLUMNS, Flag, Kind, Request, column_of
from engine.status import Status

FAULT_MS: Final = 30  # how long what lives too long does so

_Columns = dict[str, NDArray[Any]]


class _Broken(Machine):
    """Does something else than it is asked."""

    def apply(self, now_ns: int, requests: Sequence[Request], **how: bool) -> Outcome:
        return super().apply(now_ns, [self._broken(request) for request in requests], **how)

    def _broken(self, request: Request) -> Request:
        zeros = {name: np.zeros(request.lines, dtype) for name, dtype in COLUMNS.items()}
        columns = {name: column.copy() for name, column in (zeros | request.columns).items()}
        self.spoil(columns)
        return Request(
            request.op_id, request.lines, columns, request.want_available, request.digest
        )

    @staticmethod
    def spoil(columns: _Columns) -> None:
        raise NotImplementedError


def broken(spoil: Callable[[_Columns], None]) -> type[Machine]:
    """A machine that is asked what `spoil` makes of the columns of a request."""
    return type(spoil.__name__, (_Broken,), {"spoil": staticmethod(spoil)})


def lets_holds_live_longer(columns: _Columns) -> None:
    columns["value"] += (columns["kind"] == Kind.RESERVE) * FAULT_MS


def doubles_moves(columns: _Columns) -> None:
    columns["quantity"] *= 1 + (columns["kind"] == Kind.MOVE)


def takes_back_more_than_was_handed_over(columns: _Columns) -> None:
    """A return is taken for a blind one."""
    is_return = columns["kind"] == Kind.RETURN
    for half in ("hold_hi", "hold_lo"):
        columns[half][is_return] = 0


def keeps_the_superseded_hold(columns: _Columns) -> None:
    columns["flags"][columns["kind"] == Kind.RESERVE] &= ~np.uint8(Flag.SUPERSEDE)


def keeps_the_rest(columns: _Columns) -> None:
    columns["flags"][columns["kind"] == Kind.COMMIT] &= ~np.uint8(Flag.RELEASE_REST)


def counts_as_of_now(columns: _Columns) -> None:
    columns["occurred_at_ns"][columns["kind"] == Kind.COUNT] = 0


def takes_returns_of_a_refused_exchange(columns: _Columns) -> None:
    """A return is not linked to what it is exchanged for."""
    columns["flags"][columns["kind"] == Kind.RETURN] &= ~np.uint8(Flag.LINKED)


def does_parts_one_by_one(columns: _Columns) -> None:
    is_part = np.isin(columns["kind"], (Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL))
    columns["flags"][is_part] &= ~np.uint8(Flag.LINKED)


def expects_for_ever(columns: _Columns) -> None:
    """What arrives is not what was expected."""
    is_receipt = columns["kind"] == Kind.RECEIVE
    for half in ("hold_hi", "hold_lo"):
        columns[half][is_receipt] = 0


class ExtendsExpiredHolds(Machine):
    """Says that a hold has more time when it has expired."""

    def apply(self, now_ns: int, requests: Sequence[Request], **how: bool) -> Outcome:
        outcome = super().apply(now_ns, requests, **how)
        is_late = outcome.status == Status.HOLD_EXPIRED
        outcome.status[is_late & (_kinds(requests) == Kind.EXTEND)] = Status.OK
        return outcome


class LosesMoves(Machine):
    """Reads no moves out of the journal, and does not notice: its successors have lost them."""

    said: ClassVar[dict[int, NDArray[np.uint8]]] = {}

    @property
    def state_hash(self) -> int:
        return 0

    def apply(self, now_ns: int, requests: Sequence[Request], **how: Any) -> Outcome:
        is_replay = bool(how)
        if is_replay:
            requests = [_without_moves(request) for request in requests]
        outcome = super().apply(now_ns, requests, **how)
        if is_replay:
            outcome.status = self.said[now_ns]
        else:
            self.said[now_ns] = outcome.status.copy()
        return outcome


def _without_moves(request: Request) -> Request:
    kinds = column_of(request, "kind")
    kept = np.where(kinds == Kind.MOVE, np.uint8(0), kinds)
    columns = request.columns | {"kind": kept}
    return Request(request.op_id, request.lines, columns, request.want_available, request.digest)


def _kinds(requests: Sequence[Request]) -> NDArray[np.uint8]:
    return np.concatenate([np.zeros(0, np.uint8), *(column_of(each, "kind") for each in requests)])

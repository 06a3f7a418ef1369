"""The client's part about holds: from the reserve to the handover, and what goes wrong between."""

from dataclasses import replace

from adapters.client import messages
from adapters.client.ids import id_of
from adapters.client.operations import (
    Operations,
    hold_id_of,
    hold_request,
    named,
    of_any_sku,
    place_of,
)
from adapters.client.values import History, Hold, Lines, Name, Result
from onhand.v1 import stock_pb2


class Holds(Operations):
    """Holds. Wherever one is named, it is the Result of its reserve, or its id.

    With an id alone, a `location` spares the servers a search: the one where all of the hold is. A Result
    says it by itself. It is part of the call: who sends one again, by its op_id, names the hold as before.
    """

    async def reserve(
        self,
        lines: Lines,
        *,
        ttl_ms: int | None = None,
        channel: str = "",
        allow_partial: bool = False,
        supersedes: bytes | Result | None = None,
        commit_now: bool = False,
        op_id: bytes | None = None,
    ) -> Result:
        """Hold all lines for a while, or none; the servers' default when `ttl_ms` is None.

        `channel` is the code of the one that sells. With `allow_partial`, what there is of a line
        is held (`LineResult.granted`), and the Result is ok when anything is. `supersedes` is the
        caller's older hold: its stock counts as free, and it is released if this one is made, also
        when it has run out: it cannot be paid late then.
        `commit_now`: paid already, so without a deadline.
        """
        request = stock_pb2.ReserveRequest(
            op_id=id_of(op_id),
            lines=messages.lines_of(lines),
            ttl_ms=ttl_ms or 0,
            channel=channel,
            allow_partial=allow_partial,
            supersedes=hold_id_of(supersedes) if supersedes is not None else b"",
            commit_now=commit_now,
        )
        cells = of_any_sku(lines)
        # A shard commits it in the step that holds it, a gateway in one of its own: who changes from the
        # one to the other half-way is told of another order than there is.
        by_gateway = supersedes is not None and commit_now
        if supersedes is not None and not by_gateway:
            place = place_of(supersedes, None)
            cells = [*cells, (0, place)] if place is not None else []
        return await self._operate(
            lambda peer: peer.stock.Reserve, request, cells, by_gateway=by_gateway
        )

    async def extend(
        self,
        hold: bytes | Result,
        *,
        ttl_ms: int | None = None,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Give a pending hold more time, counted from now; a later deadline that it has stays."""
        place = place_of(hold, location)
        request = stock_pb2.ExtendRequest(
            op_id=id_of(op_id),
            hold_id=hold_id_of(hold),
            ttl_ms=ttl_ms or 0,
            location=messages.location_of(place),
        )
        return await self._operate(lambda peer: peer.stock.Extend, request, named(place))

    async def move(
        self,
        hold: bytes | Result,
        to: Name,
        lines: Lines = (),
        *,
        channel: str = "",
        op_id: bytes | None = None,
    ) -> Result:
        """Hold the same at another location instead; refused when that has not the stock.

        `channel` is the code of the one that the hold is for: what that may not sell there is not stock.

        `lines` name what is moved by its SKU, the location that it leaves, and a quantity (0: all);
        without them everything that is pending moves. The hold's id stays, and this Result stands
        for the hold in later calls: that of the reserve says where it was.
        """
        hold_id = hold_id_of(hold)
        request = stock_pb2.MoveRequest(
            op_id=id_of(op_id),
            hold_id=hold_id,
            lines=messages.lines_of(lines),
            to=messages.location_of(to),
            channel=channel,
        )
        place = place_of(hold, None)
        cells = [] if place is None else [(0, to), (0, place)]
        moved = await self._operate(lambda peer: peer.stock.Move, request, cells)
        if moved.ok and not lines:
            place = to
        elif moved.location is None:  # not all in one place, or nobody knows
            place = None
        return replace(moved, hold_id=hold_id, location=place)

    async def commit(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        release_rest: bool = False,
        re_reserve_if_expired: bool = False,
        channel: str = "",
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Post a hold, or the parts of it that `lines` name, to an order.

        `release_rest` gives up what the parts leave. With `re_reserve_if_expired` a whole hold that
        has run out is reserved again, if the stock is still there, and committed in one step; `channel`
        is the code of the one that it is reserved again for, and is for nothing else.
        """
        request = hold_request(hold, lines, location, op_id)
        request.release_rest = release_rest
        request.re_reserve_if_expired = re_reserve_if_expired
        request.channel = channel
        if release_rest and place_of(hold, location) is None:
            # The rest may be on other shards than the parts.
            return await self._operate(lambda peer: peer.stock.Commit, request, [])
        return await self._on_hold(lambda peer: peer.stock.Commit, request, hold, lines, location)

    async def release(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Give up what is pending of a hold, or parts of it."""
        request = hold_request(hold, lines, location, op_id)
        return await self._on_hold(lambda peer: peer.stock.Release, request, hold, lines, location)

    async def fulfil(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        occurred_at_ns: int = 0,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Hand over what is committed of a hold, or parts of it: it leaves on_hand.

        `occurred_at_ns`: when it left, ns since 1970, if that is told late; 0 is now.
        """
        request = hold_request(hold, lines, location, op_id)
        request.occurred_at_ns = occurred_at_ns
        return await self._on_hold(lambda peer: peer.stock.Fulfil, request, hold, lines, location)

    async def unfulfil(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        occurred_at_ns: int = 0,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Take a handover back that failed: what it was, or parts of it, is committed again.

        `occurred_at_ns`: when the goods were back on the shelf, ns since 1970, if that is told
        late; 0 is now.
        """
        request = hold_request(hold, lines, location, op_id)
        request.occurred_at_ns = occurred_at_ns
        return await self._on_hold(lambda peer: peer.stock.Unfulfil, request, hold, lines, location)

    async def cancel(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Cancel what is committed and not handed over, or parts of it: it is available again."""
        request = hold_request(hold, lines, location, op_id)
        return await self._on_hold(lambda peer: peer.stock.Cancel, request, hold, lines, location)

    async def get_hold(self, hold: bytes | Result, *, location: Name | None = None) -> Hold | None:
        """Look a hold up; None when there is none, or it was resolved too long ago."""
        request, shard = await self._question(hold, location)
        found = await self._caller.call(lambda peer: peer.stock.GetHold, request, shard)
        return messages.hold_from(found)

    async def get_history(self, hold: bytes | Result, *, location: Name | None = None) -> History:
        """Look a hold up with every operation on it, as far back as the journal is kept."""
        request, shard = await self._question(hold, location)
        found = await self._caller.call(lambda peer: peer.stock.GetHistory, request, shard)
        return messages.history_from(found)

    async def _question(
        self, hold: bytes | Result, location: Name | None
    ) -> tuple[stock_pb2.GetHoldRequest, int]:
        """The question for a hold, and the shard to ask."""
        place = place_of(hold, location)
        request = stock_pb2.GetHoldRequest(
            hold_id=hold_id_of(hold), location=messages.location_of(place)
        )
        return request, await self._owner(named(place))

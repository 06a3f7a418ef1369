"""A client: it sends a request until it is answered, always under the same op_id, by any way."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from actors.ports import Overloaded, Position, Unavailable
from actors.service import ClusterError
from engine import wire
from engine.operations import Answer, Flag, Kind, Request
from engine.status import Status
from engine.views import Cell, Hold
from tests.sim.oracle import Call, demand
from tests.sim.world import EPOCH_NS, GATEWAYS_ONLY, World, fingerprint

if TYPE_CHECKING:
    from tests.sim.book import Shop

THINK_MEAN_S: Final = 0.03
RETRY_MOST_S: Final = 0.1
PATIENCE: Final = 4  # attempts of a client that may give up
READ_ATTEMPTS: Final = 3
# Lines on holds and records, which a client sends by way of a gateway when there are several shards.
_ON_HOLD: Final = (
    Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL, Kind.EXTEND, Kind.UNFULFIL, Kind.MOVE,
    Kind.CANCEL_INCOMING,
)  # fmt: skip


class Client:
    """One of several that work at the same time; its process never dies."""

    def __init__(self, world: World, shop: "Shop", number: int) -> None:
        self.chance: Random = world.fork()
        self.shop = shop
        self.process = world.process(f"client-{number}")
        self._world = world

    def new_id(self) -> bytes:
        return self.chance.randbytes(14) + bytes(2)

    async def think(self) -> None:
        await asyncio.sleep(self.chance.expovariate(1 / THINK_MEAN_S))

    async def pause(self, mean_s: float) -> None:
        """Do nothing for about so long."""
        await asyncio.sleep(self.chance.uniform(0, 2 * mean_s))

    def now_ns(self) -> int:
        """The time as the client has it."""
        return EPOCH_NS + round(self.now_s() * 1e9)

    def now_s(self) -> float:
        return self._world.loop.now_s

    def ends(self) -> dict[int, Position]:
        """Where the streams end, by shard."""
        return self._world.oracle.ends()

    async def write(
        self, method: str, request: Request, *args: Any, patient: bool = False
    ) -> Answer | None:
        """Send until answered. One client in ten gives up after a while: None.

        `method` and `args` are those of `world.write`.
        """
        patient = patient or self.chance.random() < 0.9
        payload = wire.encode_requests([request])
        attempt = 0
        while patient or attempt < PATIENCE:
            attempt += 1
            try:
                answer = await self._attempt(method, request, payload, args)
            except (ClusterError, Overloaded, Unavailable) as error:
                self._log(f"{method} {request.op_id.hex()[:8]}: {type(error).__name__}")
                await asyncio.sleep(self.chance.uniform(0, RETRY_MOST_S))
                continue
            digits = answer.status.hex()
            self._log(f"{method} {request.op_id.hex()[:8]}: {digits} {answer.epoch}-{answer.seq}")
            self.shop.calls.append(Call(method, request, args, answer, self.ends()))
            return answer
        return None

    async def look_at_cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None] | None:
        """Read cells through a gateway. None: it failed again and again."""
        found = await self._read("cells", names)
        self._log(f"cells {fingerprint(repr(found).encode())}")
        return found  # type: ignore[no-any-return]

    async def look_at_hold(self, hold_id: bytes, location: int = 0) -> Hold | None:
        """Read a hold through a gateway; `location`, if not 0, is where all of it is."""
        found = await self._read("hold", hold_id, location)
        self._log(f"hold {hold_id.hex()[:8]}: {fingerprint(repr(found).encode())}")
        return found  # type: ignore[no-any-return]

    def compare(self, call: Call, again: Answer | None) -> None:
        """A repeated request meets its first statuses; its first answer, where one shard alone has it."""
        if again is None or set(again.status) == {Status.OP_ID_REUSED}:
            return
        told = f"{call.method} {call.request.op_id.hex()}: {call.answer}, then {again}"
        demand(again.status == call.answer.status, told)
        if self._shard_of(call.method, call.request, call.args) is not None:
            demand(again == call.answer, told)

    async def _attempt(
        self, method: str, request: Request, payload: bytes, args: Sequence[Any]
    ) -> Answer:
        world, shard = self._world, self._shard_of(method, request, args)
        if shard is not None and self.chance.random() < 0.5:
            host: Any = world.route(shard)
        else:
            host = world.gateways[self.chance.choice(list(world.gateways))]
        packed = await world.network.call(host, "write", method, payload, *args)
        answer = wire.decode_answers(packed)[0]
        assert isinstance(answer, Answer)
        return answer

    async def _read(self, method: str, *args: Any) -> Any:
        world = self._world
        for _ in range(READ_ATTEMPTS):
            host = world.gateways[self.chance.choice(list(world.gateways))]
            try:
                return await world.network.call(host, method, *args)
            except (ClusterError, Overloaded, Unavailable):
                await asyncio.sleep(self.chance.uniform(0, RETRY_MOST_S))
        return None

    def _shard_of(self, method: str, request: Request, args: Sequence[Any]) -> int | None:
        """The one shard that owns all that a request is about; None when there may be several."""
        if method in GATEWAYS_ONLY:
            return None
        if self._world.shards == 1:
            return 0
        columns = request.columns
        if method == "on_hold" and args:  # where all of it is
            at = self._world.shard_map.owners(args[0])
            return at[0] if len(at) == 1 else None
        if any(kind in _ON_HOLD for kind in columns["kind"].tolist()) or "sku" not in columns:
            return None
        if "flags" in columns and columns["flags"][0] & Flag.SUPERSEDE:
            return None  # the older hold may be on others
        owners = self._world.shard_map.shards_of(columns["sku"], columns["location"]).tolist()
        return owners[0] if len(set(owners)) == 1 else None

    def _log(self, text: str) -> None:
        self._world.log(f"{self.process.name}: {text}")

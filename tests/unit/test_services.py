"""What the actors' services do when a part of them fails."""

import asyncio
from typing import Any

from actors.mirror import Mirrors
from adapters.services import ActorConfig, GatewayService

CONFIG = ActorConfig(
    redis_url="redis://:hunter2@127.0.0.1:1/0",
    cluster="main",
    shards=0,
    host="127.0.0.1",
    gateway_port=0,
    shard_port_base=0,
    metrics_host="127.0.0.1",
    metrics_port_base=0,
    snapshot_every_bytes=1,
    keep_journal_bytes=1,
    room_for_cells=0,
    room_for_holds=0,
    stop_grace_s=0.0,
)


class FakeHost:
    """Takes down why the process would have ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    def actor(self, name: str) -> Any:
        return name

    def exit(self, reason: str) -> None:
        self.ended.put_nowait(reason)


async def test_a_gateway_whose_mirrors_nobody_keeps_ends_itself() -> None:
    async def failing(_self: Mirrors) -> None:
        raise LookupError("a bug")

    host: Any = FakeHost()
    gateway = GatewayService(CONFIG, host)
    gateway._task(failing(Mirrors(())))
    async with asyncio.timeout(5):
        assert "a bug" in await host.ended.get()
    gateway._task(asyncio.sleep(60))
    await gateway.stop()  # what is cancelled has not failed
    assert host.ended.empty()


def test_a_config_does_not_show_the_password() -> None:
    assert "hunter2" not in repr(CONFIG)

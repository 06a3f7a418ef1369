"""Where servers are, in a real store and without one."""

import asyncio

import pytest

from actors.ports import Unavailable
from adapters import registry
from adapters.registry import Entry, Registry


async def test_servers_are_entered_and_found_again(url: str, key: str) -> None:
    async with Registry(url, key) as here, Registry(url, key) as there:
        assert await there.entries() == {}
        await here.enter("shard-0", Entry("127.0.0.1:1", 1, ""))
        await here.enter("gateway", Entry("127.0.0.1:2", 0, "127.0.0.1:3"))
        await here.enter("shard-0", Entry("127.0.0.1:4", 2, ""))
        many = await asyncio.gather(*(there.entries() for _ in range(100)))
        assert (
            many
            == [
                {
                    "shard-0": Entry("127.0.0.1:4", 2, ""),
                    "gateway": Entry("127.0.0.1:2", 0, "127.0.0.1:3"),
                }
            ]
            * 100
        )
        assert len(await here.store_id()) == 8
        assert await here.store_id() == await there.store_id()


async def test_a_store_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RETRY_FOR_S", 0.05)
    monkeypatch.setattr(registry, "REPLY_TIMEOUT_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Registry(f"redis://127.0.0.1:{port}/0", "onhand:x") as silenced:
            with pytest.raises(Unavailable, match="no reply within"):
                await silenced.entries()
    async with Registry("redis://127.0.0.1:1/0", "onhand:x") as away:
        with pytest.raises(Unavailable, match="cannot connect"):
            await away.store_id()

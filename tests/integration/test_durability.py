"""What a server says of how durable its writes are."""

import pytest

from actors.ports import JournalUnavailable
from adapters.durability import verify_durability
from adapters.resp import RespClient


async def test_durability_is_told(url: str, admin: RespClient) -> None:
    found = await verify_durability(url)
    assert (found.appendonly, found.appendfsync, found.replica) == ("yes", "always", False)
    assert found.warnings == []
    await admin.call(b"CONFIG", b"SET", b"appendfsync", b"everysec")
    await admin.call(b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru")
    try:
        assert len((await verify_durability(url)).warnings) == 2
    finally:
        await admin.call(b"CONFIG", b"SET", b"appendfsync", b"always")
        await admin.call(b"CONFIG", b"SET", b"maxmemory-policy", b"noeviction")


@pytest.mark.parametrize("login", ["nobody:pw", ":wrong"])
async def test_a_server_that_lets_nobody_in_is_told(url: str, login: str) -> None:
    with pytest.raises(JournalUnavailable, match=r"refuses us: (WRONGPASS|ERR AUTH)"):
        await verify_durability(url.replace("redis://", f"redis://{login}@"))


async def test_a_managed_server_may_hide_its_durability(url: str, admin: RespClient) -> None:
    await admin.call(b"ACL", b"SETUSER", b"tenant", b"on", b">pw", b"~*", b"+@all", b"-config")
    try:
        found = await verify_durability(url.replace("redis://", "redis://tenant:pw@"))
        assert found.appendfsync is None
        assert len(found.warnings) == 1
    finally:
        await admin.call(b"ACL", b"DELUSER", b"tenant")

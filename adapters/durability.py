"""Whether a server keeps what it acknowledges: its own settings, in sentences for people."""

from dataclasses import dataclass
from typing import Final

from actors.ports import JournalUnavailable
from adapters.resp import Endpoint, RespClient, RespError, ServerUnavailable

ASK_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Durability:
    """What a server says of how it keeps writes; None where it would not say."""

    appendonly: str | None  # "yes", "no"
    appendfsync: str | None  # "always", "everysec", "no"
    maxmemory_policy: str | None  # anything but "noeviction" may throw a journal away
    replica: bool | None

    @property
    def warnings(self) -> list[str]:
        """Say in sentences what is looser than the design promises; empty when nothing is."""
        found = []
        if self.appendonly is None or self.appendfsync is None:
            found.append("The server does not tell how it persists (CONFIG is refused).")
        elif self.appendonly != "yes":
            found.append("The server keeps no append-only file: a crash loses the journal.")
        elif self.appendfsync != "always":
            found.append(
                f"The server has appendfsync {self.appendfsync}: a crash may lose blocks that were"
                " acknowledged, about the last second's or two's."
            )
        if self.maxmemory_policy not in {"noeviction", None}:
            found.append(
                f"The server has maxmemory-policy {self.maxmemory_policy}: it may evict a journal."
            )
        if self.replica:
            found.append("The server is a replica: writes are refused or lost.")
        return found


async def verify_durability(url: str, *, timeout_s: float = ASK_TIMEOUT_S) -> Durability:
    """Ask a server how durable its writes are. Raises JournalUnavailable when it cannot be asked.

    Managed servers may refuse CONFIG; what they hide is None.
    """
    client = RespClient(Endpoint.parse(url), retry_for_s=timeout_s, reply_timeout_s=timeout_s)

    async def ask(*command: bytes) -> list[bytes] | None:
        try:
            return list(await client.call(*command))
        except RespError:
            return None

    async def setting(name: bytes) -> str | None:
        pair = await ask(b"CONFIG", b"GET", name)
        return pair[1].decode() if pair else None

    try:
        await client.call(b"PING")  # whoever is not let in gets no other answer either
        role = await ask(b"ROLE")
        return Durability(
            appendonly=await setting(b"appendonly"),
            appendfsync=await setting(b"appendfsync"),
            maxmemory_policy=await setting(b"maxmemory-policy"),
            replica=None if role is None else role[0] != b"master",
        )
    except ServerUnavailable as error:
        raise JournalUnavailable(f"the store does not answer: {error}") from error
    except RespError as error:
        raise JournalUnavailable(f"the store refuses us: {error}") from error
    finally:
        await client.close()

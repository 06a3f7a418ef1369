"""A whole Onhand, brought up and shut down: the store, Ray, the shards, the gateway.

    with Stack(Settings.load(data_dir=...)) as stack:
        print(stack.gateway_address)

Without a `redis_url` it starts the embedded Valkey, from this process and not from an actor, whose
children would die with it. Without a `ray_address` it starts a local Ray. Blocking calls throughout,
for the CLI, benches and tests; inside an event loop run them in a thread.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from actors.cluster import Cluster, Handle
from actors.ports import Unavailable, shard_name
from actors.service import ClusterError
from adapters.durability import verify_durability
from adapters.registry import GATEWAY, Entry, Registry
from adapters.services import ActorConfig, ShardConfig, build_gateway, build_shard
from adapters.settings import Settings
from adapters.valkey import EmbeddedValkey

# Ray starts its processes by fork. gRPC's own handlers around a fork can hang the child for good when a
# channel is open in this process; without them the child just goes on to exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

SPARE_WORKERS: Final = 1  # so that one actor that dies is back in a tenth of a second
READY_S: Final = 120.0
AUDIT_S: Final = 120.0
KNOCK_S: Final = 1.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit of all shards found. `problems` is empty when all is well."""

    problems: list[str]
    state_hash: str  # hex, of all shards in order of number

    @property
    def conserved(self) -> bool:
        """Whether every invariant holds in every shard."""
        return not self.problems


class Stack:
    """Store, Ray, shards and gateway as one context. `tell` is told each step, for a progress line."""

    def __init__(
        self, settings: Settings, *, tell: Callable[[str], None] = lambda _step: None
    ) -> None:
        self.settings = settings
        self.warnings: list[str] = []
        self.redis_url = ""
        self._tell = tell
        self._open = ExitStack()
        self._cluster: Cluster | None = None

    # --- life ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def _start(self) -> None:
        settings = self.settings
        self._tell("compiling the kernels (once)")
        # In a process of its own, beside what follows: numba's cache must be warm before actors.
        warming = subprocess.Popen([sys.executable, "-m", "engine.warm"])
        self._open.callback(_end_process, warming)
        self._tell("starting the store")
        self.redis_url = settings.redis_url or self._embedded()
        durability = asyncio.run(verify_durability(self.redis_url))
        config = ActorConfig(
            redis_url=self.redis_url,
            cluster="main",
            shards=settings.shards,
            host=settings.host,
            gateway_port=settings.port,
            shard_port_base=settings.shard_port_base,
            metrics_host=settings.metrics_host,
            metrics_port_base=settings.metrics_port_base,
            snapshot_every_bytes=settings.snapshot_every_mb << 20,
            keep_journal_bytes=settings.keep_journal_mb << 20,
            room_for_cells=settings.room_for_cells,
            room_for_holds=settings.room_for_holds,
            stop_grace_s=settings.stop_grace_s,
        )
        self._config = config
        self.warnings = durability.warnings + self._rivals()
        self._tell("starting Ray")
        self._cluster = self._open.enter_context(
            Cluster.connect(
                settings.ray_address,
                workers=settings.shards + 1 + SPARE_WORKERS,
                preload=("adapters.services",),
            )
        )
        if warming.wait() != 0:
            raise RuntimeError("the kernels do not compile; see the messages above")
        self._tell("starting the actors")
        handles = [self._cluster.start_gateway(GATEWAY, build_gateway, config)]
        handles += [
            self._cluster.start_shard(shard_name(number), build_shard, ShardConfig(config, number))
            for number in range(settings.shards)
        ]
        for handle in handles:
            handle.ready_sync(READY_S)
        self._wait_for_mirrors()

    def _rivals(self) -> list[str]:
        """Whether another Onhand seems to be at work on a store that is not our own.

        A warning and no refusal: it may be this cluster's, or a stranger on a port of old.
        """
        there = self.servers().get(GATEWAY) if self.settings.redis_url else None
        if there is None or not _answers(there.address):
            return []
        return [
            (
                f"A gateway of this store answers at {there.address} already: unless it is this"
                " cluster's own, the two take the journals from each other. Stop one of them."
            )
        ]

    def _embedded(self) -> str:
        settings = self.settings
        server = EmbeddedValkey(settings.data_dir, settings.appendfsync)
        self._open.callback(server.stop)  # first, or a signal in between would leave it behind
        return server.start()

    def _wait_for_mirrors(self) -> None:
        """Until the gateway sees what the shards have."""
        for number in range(self.settings.shards):
            self.wait_for_mirror(number)

    # --- what one asks of it -------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """The Ray cluster. RuntimeError outside the context."""
        if self._cluster is None:
            raise RuntimeError("the stack is not up")
        return self._cluster

    @property
    def gateway_address(self) -> str:
        """host:port of the gateway."""
        return self.servers()[GATEWAY].address

    def shard_address(self, number: int = 0) -> str:
        """host:port of a shard's own server."""
        return self.servers()[shard_name(number)].address

    def servers(self) -> dict[str, Entry]:
        """Where everything is, by name."""
        return asyncio.run(self._entries())

    async def _entries(self) -> dict[str, Entry]:
        async with Registry(self.redis_url, self._config.prefix) as registry:
            return await registry.entries()

    def shard(self, number: int = 0) -> Handle:
        """A shard's actor."""
        return self.cluster.actor(shard_name(number))

    def status(self, number: int = 0) -> dict[str, Any]:
        """How a shard is (`actors.shard.Shard.status`)."""
        found: dict[str, Any] = self.shard(number).call_sync("status")
        return found

    def gateway_status(self) -> dict[str, Any]:
        """How the gateway is: subscribers, and the mirrors' health."""
        found: dict[str, Any] = self.cluster.actor(GATEWAY).call_sync("status")
        return found

    def snapshot(self, number: int = 0) -> str:
        """Take a snapshot of a shard; the position it is of."""
        at: str = self.shard(number).call_sync("snapshot", timeout_s=AUDIT_S)
        return at

    def state_hash(self) -> str:
        """The state hashes of all shards, in hex, in order."""
        return "".join(str(self.status(n)["state_hash"]) for n in range(self.settings.shards))

    def audit(self) -> AuditReport:
        """Check every shard's invariants: what is reserved and committed is what its holds say."""
        problems: list[str] = []
        for number in range(self.settings.shards):
            found = self.shard(number).call_sync("audit", timeout_s=AUDIT_S)
            problems += [f"shard {number}: {problem}" for problem in found]
        return AuditReport(problems, self.state_hash())

    def wait_for_mirror(self, number: int = 0, timeout_s: float = READY_S) -> None:
        """Wait until the gateway's mirror of a shard has what the shard has now."""
        deadline = time.monotonic() + timeout_s
        status = self.status(number)
        gateway = self.cluster.actor(GATEWAY)
        while time.monotonic() < deadline:
            args = (number, status["epoch"], status["seq"], 5.0)
            if gateway.call_sync("reached", *args, timeout_s=READY_S):
                return
            time.sleep(_POLL_S)
        raise TimeoutError(f"the mirror of shard {number} is still behind after {timeout_s:g} s")

    def kill_shard(self, number: int = 0) -> int:
        """Kill a shard's process as a crash would (SIGKILL); it comes back by itself. Its old pid."""
        pid = self.shard(number).pid_sync()
        os.kill(pid, signal.SIGKILL)
        return pid

    def restart_shard(self, number: int = 0) -> None:
        """Kill a shard and wait until its successor serves, from the journal alone."""
        before = self.status(number)["epoch"]
        self.kill_shard(number)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                self.shard(number).ready_sync(READY_S)
                if self.status(number)["epoch"] > before:
                    return
            except (ClusterError, Unavailable):
                pass  # it is on its way up
            time.sleep(_POLL_S)
        raise TimeoutError(f"shard {number} is not back after {READY_S:g} s")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), KNOCK_S).close()
    except OSError:
        return False
    return True


def _end_process(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()

"""The hand on an Onhand that another process runs: its actors, called by way of its Ray."""

from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from adapters.cli.options import read_note
from adapters.cli.output import CommandFailed

SLOW_S: Final = 120.0  # an audit or a snapshot of a large shard
STATUS_S: Final = 10.0


class Running:
    """A context manager; entering it joins the Ray that `onhand up` on `data_dir` uses."""

    def __init__(self, data_dir: Path, ray_address: str = "") -> None:
        """CommandFailed when it is not known where to join."""
        self._ray = ray_address or str(read_note(data_dir).get("ray", ""))
        if not self._ray:
            raise CommandFailed(
                f"no Onhand runs on {data_dir}: start one with `onhand up`, or name its Ray cluster"
                " by --ray-address"
            )

    def __enter__(self) -> Self:
        from actors.cluster import Cluster
        from actors.service import UnknownActor
        from adapters.registry import GATEWAY

        self._cluster = Cluster.connect(self._ray)
        try:
            self.gateway = self._ask(GATEWAY, "status", STATUS_S)
        except UnknownActor as error:
            self._cluster.shutdown()
            raise CommandFailed(f"no Onhand runs on the Ray cluster at {self._ray}") from error
        except BaseException:
            self._cluster.shutdown()
            raise
        self.shards = range(len(self.gateway["mirrors"]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cluster.shutdown()

    def shard(self, number: int) -> dict[str, Any]:
        """A shard's status, and the gateway's lag behind it."""
        status: dict[str, Any] = self._ask_shard(number, "status", STATUS_S)
        lag_ms = self.gateway["mirrors"][number].get("lag_ns", 0) / 1e6
        return {"shard": number, **status, "mirror_lag_ms": round(lag_ms, 1)}

    def shard_if_serving(self, number: int) -> dict[str, Any]:
        """A shard's status; why there is none (`error`) when it does not serve."""
        from actors.ports import Unavailable
        from actors.service import ClusterError

        try:
            return self.shard(number)
        except (ClusterError, Unavailable) as error:
            return {"shard": number, "error": str(error)}

    def audit(self, number: int) -> list[str]:
        """A shard's own invariants: what does not hold."""
        found: list[str] = self._ask_shard(number, "audit")
        return found

    def snapshot(self, number: int) -> str:
        """Take a snapshot of a shard; the block it is of."""
        found: str = self._ask_shard(number, "snapshot")
        return found

    def _ask_shard(self, number: int, method: str, timeout_s: float = SLOW_S) -> Any:
        from actors.ports import shard_name

        return self._ask(shard_name(number), method, timeout_s)

    def _ask(self, actor: str, method: str, timeout_s: float) -> Any:
        return self._cluster.actor(actor).call_sync(method, timeout_s=timeout_s)

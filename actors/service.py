"""What an actor hosts, and what may come between it and its callers: all that needs no Ray.

`actors.cluster` does it; those who host and those who call go by this.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, Self


class ClusterError(Exception):
    """Anything that stands between a caller and an actor."""


class ClusterUnavailable(ClusterError):  # noqa: N818 - conditions, not errors, as in actors.ports
    """No Ray could be started or reached."""


class UnknownActor(ClusterError):  # noqa: N818
    """No actor has this name. Nothing ran."""


class ActorBusy(ClusterError):  # noqa: N818
    """Too many calls of this process wait for this actor already. Nothing ran."""


class NotServing(ClusterError):  # noqa: N818
    """The actor stands, but its service has not started, or has stopped. Nothing ran."""


class ActorTimeout(ClusterError):  # noqa: N818
    """No answer in time. The call may have run, may run still: retry with the same op_id only."""


class ActorGone(ClusterError):  # noqa: N818
    """The actor died or restarts. The call may have run: retry with the same op_id only.

    `for_good`: it will not come back under this name unless somebody starts it.
    """

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


class CallFailed(ClusterError):  # noqa: N818
    """The method raised something that could not be carried over; its text is in the message."""


class StartFailed(ClusterError):  # noqa: N818
    """The service could not start; the message says why. The actor goes on trying by itself."""


class ConfigMismatch(ClusterError):  # noqa: N818
    """An actor of this name already runs, with another config. Stop it, or use its config."""


class Service(Protocol):
    """What an actor hosts. All of it runs on the one event loop of the actor's process."""

    async def start(self) -> None:
        """Recover and open servers; return when serving. What it raises, `Handle.ready` tells."""

    async def stop(self) -> None:
        """End gracefully. Also called after a `start` that failed or was cancelled half-way."""

    async def call(self, method: str, *args: Any) -> Any:
        """Answer an internal call. Exceptions reach the caller as they are, if they pickle."""


@dataclass(frozen=True, slots=True)
class Description:
    """What an actor was made of, to tell whether it is the one that is wanted."""

    kind: str
    factory: str
    config: Any

    def differences(self, other: Self) -> list[str]:
        """Name what differs; of configs, the fields and not their values, which may be secret."""
        found = [
            part for part in ("kind", "factory") if getattr(self, part) != getattr(other, part)
        ]
        if self.config == other.config:
            return found
        mine, theirs = _parts(self.config), _parts(other.config)
        named = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
        return found + [f"config.{key}" for key in named] or ["config"]


def _parts(config: Any) -> dict[str, Any]:
    if is_dataclass(config):
        return {field.name: getattr(config, field.name) for field in fields(config)}
    return dict(getattr(config, "__dict__", {}))


def path_of(factory: Callable[..., Any]) -> str:
    """Give `module:name` of a top-level function; ValueError when another process cannot find it."""
    module, name = factory.__module__, factory.__qualname__
    found = getattr(importlib.import_module(module), name, None)
    if module == "__main__" or found is not factory:
        raise ValueError(f"{module}:{name} is not a top-level function of an importable module")
    return f"{module}:{name}"

"""From options to a stack: Valkey (or a given Redis), Ray (or a given cluster), shards, gateway."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.cli.output import CommandFailed, say

if TYPE_CHECKING:
    from adapters.stack import Stack


def stack_of(
    data_dir: Path,
    shards: int | None = None,
    redis_url: str = "",
    ray_address: str = "",
    port: int | None = None,
    **more: Any,
) -> "Stack":
    """Describe a stack; entering it starts it. CommandFailed when the settings are wrong."""
    from adapters.settings import Settings, SettingsInvalid
    from adapters.stack import Stack

    try:
        settings = Settings.load(
            data_dir=data_dir,
            shards=shards,
            redis_url=redis_url or None,
            ray_address=ray_address or None,
            port=port,
            **more,
        )
    except SettingsInvalid as error:
        raise CommandFailed(str(error)) from error
    return Stack(settings, tell=say)

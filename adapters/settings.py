"""The settings of an installation: from the command line, the environment (ONHAND_...), and a file.

Each of them wins over the next. The file is TOML; its path stands in ONHAND_CONFIG or comes from the
command line. Actors are told what they need of them (`adapters.services.ActorConfig`).
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from adapters.resp import Endpoint
from engine import limits

PREFIX: Final = "ONHAND_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
MAX_PORT: Final = 65_535


class SettingsInvalid(ValueError):  # noqa: N818 - a condition, for people
    """What is wrong with the settings, field by field; no values, which may be secret."""


class Settings(BaseSettings):
    """What can be set. Without any of it, one machine with an embedded Valkey."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    redis_url: str | None = Field(None, repr=False, description="None: an embedded Valkey")
    data_dir: Path = Field(Path(".onhand"), description="of the embedded Valkey")
    appendfsync: Literal["always", "everysec", "no"] = "always"
    shards: int = Field(1, ge=1, le=limits.MAX_SHARDS)
    host: str = Field("127.0.0.1", min_length=1, description="that gRPC servers listen on")
    port: int = Field(7411, ge=0, le=MAX_PORT, description="of the gateway; 0: a free one")
    shard_port_base: int = Field(
        0, ge=0, le=MAX_PORT, description="of shard 0, then up; 0: free ones"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1)
    metrics_port_base: int = Field(
        0, ge=0, le=MAX_PORT, description="of the gateway; shard n has 1 + n more; 0: free ones"
    )
    ray_address: str | None = Field(None, description="None: a local Ray")
    keep_journal_mb: int = Field(
        128,
        ge=0,
        le=1 << 20,
        description="of each shard, behind its snapshots, for histories and events",
    )
    snapshot_every_mb: int = Field(64, ge=1, le=1 << 20, description="of journal, in each shard")
    room_for_cells: int = Field(
        0,
        ge=0,
        le=limits.MAX_CELLS,
        description="that each shard begins with: up to it tables never pause to grow",
    )
    room_for_holds: int = Field(0, ge=0, le=limits.MAX_HOLDS, description="likewise")
    stop_grace_s: float = Field(5.0, ge=0, le=600)

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("must begin with redis://, rediss:// or unix://")
        if parts.scheme != "unix" and not parts.hostname:
            raise ValueError("names no host")
        try:
            Endpoint.parse(value)
        except OSError as error:  # of a file with certificates
            raise ValueError(f"a file of its ssl_ options: {error.strerror}") from None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names them
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take no .env file and no secrets folder: fewer places to look at night."""
        sources = [init_settings, env_settings]
        path = os.environ.get(CONFIG_VARIABLE)
        if path:
            sources.append(TomlConfigSettingsSource(settings_cls, Path(path)))
        return tuple(sources)

    @classmethod
    def load(cls, config: Path | None = None, **given: Any) -> Self:
        """Read the settings; what is None in `given` is as if not given.

        Raises SettingsInvalid, naming each field that is wrong and each that nobody knows.
        """
        told = {key: value for key, value in given.items() if value is not None}
        path = config or (
            Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None
        )
        if path is not None and not path.is_file():
            raise SettingsInvalid(f"config: there is no file {path}")
        before = os.environ.get(CONFIG_VARIABLE)
        if path is not None:
            os.environ[CONFIG_VARIABLE] = str(path)
        try:
            return cls(**told)
        except ValidationError as error:
            lines = [f"{_field(each['loc'])}: {_told(each['msg'])}" for each in error.errors()]
            raise SettingsInvalid("; ".join(lines)) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsInvalid(f"config: {path} is not TOML: {error}") from None
        finally:
            os.environ.pop(CONFIG_VARIABLE, None)
            if before is not None:
                os.environ[CONFIG_VARIABLE] = before

    @property
    def redis_url_shown(self) -> str:
        """The URL for logs and people, without its password."""
        if self.redis_url is None:
            return "embedded"
        parts = urlsplit(self.redis_url)
        if "@" not in parts.netloc:
            return urlunsplit(parts._replace(query=""))
        user, _, host = parts.netloc.rpartition("@")
        name = user.partition(":")[0]
        return urlunsplit(parts._replace(netloc=f"{name}:***@{host}", query=""))

    def __repr__(self) -> str:
        """Show what was set, the password masked."""
        shown = {name: getattr(self, name) for name in type(self).model_fields}
        shown["redis_url"] = self.redis_url_shown
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    __str__ = __repr__


def _told(message: str) -> str:
    return message.removeprefix("Value error, ")  # pydantic's words for our own


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"

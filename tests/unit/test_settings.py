from pathlib import Path

import pytest

from adapters.settings import Settings, SettingsInvalid


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "SHARDS", "REDIS_URL", "PORT"):
        monkeypatch.delenv(f"ONHAND_{name}", raising=False)


def test_without_any_it_is_one_machine_with_an_embedded_valkey() -> None:
    settings = Settings.load()
    assert (settings.redis_url, settings.shards, settings.host) == (None, 1, "127.0.0.1")
    assert settings.redis_url_shown == "embedded"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "onhand.toml"
    config.write_text("shards = 2\nport = 1\nsnapshot_every_mb = 9\n")
    monkeypatch.setenv("ONHAND_SHARDS", "3")
    monkeypatch.setenv("ONHAND_PORT", "2")
    settings = Settings.load(config, port=4, host=None)
    assert (settings.snapshot_every_mb, settings.shards, settings.port) == (9, 3, 4)
    monkeypatch.setenv("ONHAND_CONFIG", str(config))
    assert Settings.load().snapshot_every_mb == 9
    assert Settings.load() == Settings.load()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("shards = 0", "shards: Input should be greater than or equal to 1"),
        ("shard = 1", "shard: Extra inputs are not permitted"),
        ('port = "many"', "port: Input should be a valid integer"),
        ("port =", "is not TOML"),
        ('redis_url = "http://:hunter2@here"', "redis_url: must begin with redis://"),
        ('redis_url = "redis://:@x/hunter2@here"', "redis_url: a Redis URL's database is a number"),
        ('redis_url = "redis://me:hunter2/1"', "redis_url: a Redis URL's port is 1 to 65535"),
        (
            'redis_url = "redis://here?hunter2"',
            "redis_url: what follows ? in a Redis URL is name=value",
        ),
        ('redis_url = "redis://here?hunter=2"', "redis_url: unknown options in a redis:// URL"),
        (
            'redis_url = "rediss://here?ssl_ca_certs=/no"',
            "redis_url: a file of its ssl_ options: No such file",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_not_repeated(tmp_path: Path, text: str, named: str) -> None:
    config = tmp_path / "onhand.toml"
    config.write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        Settings.load(config)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="there is no file"):
        Settings.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:hunter2@cache:6379/0", "redis://me:***@cache:6379/0"),
        ("rediss://:hunter2@cache", "rediss://:***@cache"),
        ("unix://:hunter2@/run/cache.sock?db=2", "unix://:***@/run/cache.sock"),
        ("rediss://cache:6379/0?ssl_cert_reqs=none", "rediss://cache:6379/0"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    settings = Settings.load(redis_url=url)
    assert settings.redis_url == url
    for text in (repr(settings), str(settings), f"{settings}"):
        assert shown in text
        assert "hunter2" not in text


def test_a_file_that_is_given_leaves_the_environment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("shards = 2")
    given.write_text("shards = 3")
    monkeypatch.setenv("ONHAND_CONFIG", str(named))
    assert Settings.load(given).shards == 3
    assert Settings.load().shards == 2

"""What a start looks at before it starts anything."""

import socket

import pytest

from adapters.registry import Entry
from adapters.settings import Settings
from adapters.stack import Stack


def test_a_gateway_that_works_on_the_same_store_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(Settings.load(redis_url="redis://127.0.0.1:1/0"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(stack, "servers", lambda: {"gateway": Entry(address, 0, "")})
        (warning,) = stack._rivals()
        assert address in warning
    assert stack._rivals() == []  # it was there once
    monkeypatch.setattr(stack, "servers", dict)
    assert stack._rivals() == []

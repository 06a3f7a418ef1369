import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from actors.shard import BlockStats
from adapters.metrics import Metrics
from engine.operations import Kind
from engine.status import Status


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics("shard", 3)
    yield made
    made.close()


def block(kinds: list[int], statuses: list[int]) -> BlockStats:
    columns = np.array(kinds, np.uint8), np.array(statuses, np.uint8)
    return BlockStats(2, *columns, 1_000, 5, 3, 0.001, [0.002, 0.003])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"role": "shard", "number": "3", **labels})


def test_a_block_is_counted_by_kind_and_status(metrics: Metrics) -> None:
    refused = Status.INSUFFICIENT_STOCK
    for _ in range(2):
        metrics.block_done(
            block([Kind.RESERVE, Kind.RESERVE, Kind.SALE, 99, 0], [0, refused, 0, 2, 2])
        )
    operations = "onhand_operations_total"
    assert value(metrics, operations, kind="reserve", status="OK") == 2
    assert value(metrics, operations, kind="reserve", status="INSUFFICIENT_STOCK") == 2
    assert value(metrics, operations, kind="invalid", status="INVALID_KIND") == 4
    assert value(metrics, "onhand_block_lines_sum") == 10
    assert value(metrics, "onhand_request_seconds_count") == 4
    assert value(metrics, "onhand_holds_expired_total") == 10
    assert value(metrics, "onhand_holds_endangered_total") == 6


def test_kinds_that_are_not_told_for_each_line_are_left_out(metrics: Metrics) -> None:
    metrics.block_done(block([], [2, 2]))
    assert value(metrics, "onhand_operations_total", kind="invalid", status="INVALID_KIND") == 2


def test_an_empty_block_counts_no_line(metrics: Metrics) -> None:
    metrics.block_done(block([], []))
    assert value(metrics, "onhand_blocks_total") == 1


def test_it_is_served_over_http_while_it_lives(metrics: Metrics) -> None:
    metrics.watch("holds_open", lambda: 42)
    metrics.watch("event_subscribers", lambda: 3)
    metrics.events_told(7)
    metrics.mirror_lag(1, 0.5)
    metrics.call_observer("Stock/Reserve")(0.01)
    metrics.call_refused("Stock/Reserve", "UNAVAILABLE")
    port = metrics.serve()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    assert 'onhand_holds_open{number="3",role="shard"} 42.0' in text
    assert 'onhand_event_subscribers{number="3",role="shard"} 3.0' in text
    assert 'onhand_events_told_total{number="3",role="shard"} 7.0' in text
    assert 'onhand_lag_seconds{number="3",role="shard",shard="1"} 0.5' in text
    refused = 'onhand_calls_refused_total{code="UNAVAILABLE",method="Stock/Reserve",number="3"'
    assert refused in text
    assert "onhand_shortages" not in text
    metrics.close()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1)

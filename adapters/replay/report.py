"""What a replay reports: one value, as JSON for machines; `tables` draws it for people."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapters.replay.driver import Timings
from adapters.replay.ledger import Difference, Ledger, Unexpected
from engine.operations import Kind
from engine.status import Status

SHOWN: Final = 5  # differences and unexpected answers that a report spells out


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one kind of call, in ms."""

    calls: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, samples_ms: list[float] | NDArray[np.float64]) -> "Latency":
        """The percentiles of some samples, all 0 when there are none."""
        if not len(samples_ms):
            return cls(0, 0.0, 0.0, 0.0)
        p50, p99, highest = np.percentile(samples_ms, (50, 99, 100)).round(3).tolist()
        return cls(len(samples_ms), p50, p99, highest)


@dataclass(slots=True)
class Proof:
    """What the audit found. `holds` says whether everything held that was looked at."""

    conserved: bool = False
    cells_compared: int = 0
    cells_different: int = 0
    first_differences: list[str] = field(default_factory=list)
    replicas_equal: bool = False
    replicas_compared: int = 0
    replicas_different: list[str] = field(default_factory=list)  # codes of their locations
    hash_after_restart_equal: bool = False
    state_hash: str = ""  # of all shards, before the restart
    state_hash_after_restart: str = ""
    restart_ms: float = 0.0
    invariants_hold: bool = False  # each shard's own: its counters are what its holds say
    first_problems: list[str] = field(default_factory=list)
    unexpected: int = 0
    first_unexpected: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the engine's state is proved right."""
        return (
            self.conserved
            and self.invariants_hold
            and self.replicas_equal
            and self.hash_after_restart_equal
            and not self.unexpected
        )


@dataclass(slots=True)
class Report:
    """One replay, whole. Field names are those of the JSON."""

    weeks: int
    stores: int
    skus: int
    cells: int
    operations: int  # lines that were answered
    operations_by_kind: dict[str, dict[str, int]]  # kind -> ok, refused
    refused: int
    refused_by_status: dict[str, int]
    skipped: int  # lines of refused orders, never sent
    orders_by_state: dict[str, int]
    shortages: int  # cells with less than nothing available, at the end
    opening_s: float
    trading_s: float
    total_s: float
    opening_lines_per_s: float
    lines_per_s: float  # of the trading
    batch: Latency
    unary: Latency
    unary_lines: int
    kills: list[dict[str, float]]
    subscribers: int
    frames_delivered: int  # of any kind
    deltas_delivered: int  # cells in delta frames
    delta_delay_ms_p50: float
    delta_delay_ms_p99: float
    delta_delay_ms_max: float
    resumed: int  # times that a subscription broke and went on by its token
    proof: Proof
    peak_rss_mib: float

    def to_json(self) -> dict[str, Any]:
        """A flat object with the audit's answers at the top."""
        found = asdict(self)
        proof: dict[str, Any] = found.pop("proof")
        return {**found, **proof, "audit_holds": self.proof.holds}


def counts_of(ledger: Ledger) -> dict[str, Any]:
    """The fields of `Report` that the books know."""
    answers = ledger.answers
    ok, total = answers[:, Status.OK], answers.sum(axis=1)
    by_status = answers.sum(axis=0)
    return {
        "cells": len(ledger.cells),
        "operations": int(total.sum()),
        "operations_by_kind": {
            kind.name.lower(): {"ok": int(ok[kind]), "refused": int(total[kind] - ok[kind])}
            for kind in Kind
            if total[kind]
        },
        "refused": int((total - ok).sum()),
        "refused_by_status": {
            status.name: int(by_status[status])
            for status in Status
            if status != Status.OK and by_status[status]
        },
        "orders_by_state": ledger.orders_by_state(),
        "shortages": ledger.shortages(),
    }


def timings_of(timings: Timings) -> dict[str, Any]:
    """The fields of `Report` that the driver knows."""
    return {
        "skipped": timings.lines_skipped,
        "opening_s": round(timings.opening_s, 3),
        "trading_s": round(timings.trading_s, 3),
        "opening_lines_per_s": round(timings.lines_opening / max(timings.opening_s, 1e-9)),
        "lines_per_s": round(timings.lines_trading / max(timings.trading_s, 1e-9)),
        "batch": Latency.of(timings.batch_ms),
        "unary": Latency.of(timings.unary_ms),
        "unary_lines": timings.lines_unary,
        "kills": [
            {"share": kill.share, "recovered_ms": round(kill.recovered_ms, 1)}
            for kill in timings.kills
        ],
    }


def say_difference(found: Difference) -> str:
    """One difference, for people."""
    return (
        f"location {found.location}, SKU {found.sku}: {found.column} is {found.found},"
        f" the books say {found.expected}"
    )


def say_unexpected(found: Unexpected) -> str:
    """One answer that could not be right, for people."""
    return f"line {found.place} ({found.kind.name}) was answered {found.status.name}: {found.why}"

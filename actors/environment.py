"""The variables by which Ray's processes, and ours in them, are set; whoever starts Ray must give them.

This room speaks to no Ray.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Larger arguments go through the object store. 300 KB cost 2.4 ms there and 1.5 ms inline; 100 B, 1.
INLINE_BYTES: Final = 1 << 20
_NEVER_MS: Final = 2_000_000_000  # 23 days


# Read by every process of Ray when it starts. On a cluster that others start, give them to
# `ray start` there; the first four matter. What the environment already says wins.
RAY_ENVIRONMENT: Final[Mapping[str, str]] = {
    "RAY_worker_niceness": "0",  # workers run at nice 15 otherwise
    "RAY_max_direct_call_object_size": str(INLINE_BYTES),
    # A call lost in a crash is told after 0.1 s with these two, after 1.3 to 1.7 s without.
    "RAY_timeout_ms_task_wait_for_death_info": "50",
    "RAY_core_worker_internal_heartbeat_ms": "100",
    # Shards are the last that should die when memory is short, not the first.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_oom_score_adjustment": "0",
    # Idle processes are ended after 1 s otherwise, and spares are idle.
    "RAY_idle_worker_killing_time_threshold_ms": str(_NEVER_MS),
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_open_telemetry": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # says in advance what Ray warns about
}
# Each actor has one busy thread; pools as large as the machine, in each of them, only contend.
THREADS_ENVIRONMENT: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


def usual_auth_mode(address: str | None) -> str:
    """Ray's own defaults differ between its ways to start and with the address; this one does not.

    A client with a token is welcome at a cluster without them.
    """
    has_token = (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").exists()
    )
    return "token" if address is None or has_token else "disabled"


@contextmanager
def variables(defaults: Mapping[str, str], forced: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that Ray starts in the meantime, and put the old ones back."""
    wanted = {**{key: os.environ.get(key, value) for key, value in defaults.items()}, **forced}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value

"""What all tests share: how much hypothesis tries, and the kernels run as plain Python.

HYPOTHESIS_PROFILE is `dev` (default), `ci` (so many examples that it takes half a minute, always
the same) or `nightly` (minutes; it needs `pytest --timeout=0`).
"""

import os

import numpy as np
from hypothesis import HealthCheck, settings

# Ray starts its processes by fork, and tests hold gRPC channels meanwhile. gRPC's own handlers around
# a fork can hang the child for good; without them the child just goes on to exec. Read when gRPC is
# first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]  # whole histories are drawn at once

# No deadline: the first call of a kernel may compile it.
settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW, max_examples=50)
# The same examples on every run, so that a red build is the change's own fault.
settings.register_profile("ci", settings.get_profile("dev"), max_examples=300, derandomize=True)
settings.register_profile(
    "nightly", settings.get_profile("dev"), max_examples=10_000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))

if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
    # Compiled hashes wrap in silence; numpy's scalars, which then stand in, warn of it.
    np.seterr(over="ignore")

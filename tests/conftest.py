"""How much hypothesis tries: HYPOTHESIS_PROFILE is `dev` (default), `ci` or `nightly`."""

import os

from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,  # the first call of a kernel may compile it
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile("dev", max_examples=50, **_COMMON)
# The same examples on every run, so that a red build is the change's own fault.
settings.register_profile("ci", max_examples=300, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=10_000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))

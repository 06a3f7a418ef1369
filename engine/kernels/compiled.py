"""How kernels are compiled, and when what numba keeps on disk of them is still good.

numba goes by the file that a function stands in. A kernel has helpers of other rooms in it, and the
numbers of `engine.limits`, `engine.operations` and `engine.status`: with any of them changed it would
go on as before. So these kernels go by all of these files, and by whether indexes are checked.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
from numba.core import caching

from engine import limits, operations, status

_config: Any = numba.config  # types do not know what is in it

# `_nrt` off: nothing is allocated here, and counting references of arrays that go from one compiled
# function to the next cost 100 ns a line. Small helpers become part of their callers.
_OPTIONS: Final[dict[str, Any]] = {"cache": True, "error_model": "numpy", "_nrt": False}


def _stamp() -> str:
    rooms = sorted(Path(__file__).parent.glob("*.py"))
    others = [Path(str(module.__file__)) for module in (limits, operations, status)]
    digest = hashlib.sha256(repr(bool(_config.BOUNDSCHECK)).encode())
    for source in rooms + others:
        digest.update(source.name.encode() + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


STAMP: Final = _stamp()
"""Changes with everything that is compiled into kernels."""


class _Stamped:
    def get_source_stamp(self) -> str:
        return STAMP


class AsTold(_Stamped, caching.UserProvidedCacheLocator):
    """Where NUMBA_CACHE_DIR says."""


class BesideTheCode(_Stamped, caching.InTreeCacheLocator):
    """In `__pycache__`."""


class OfTheUser(_Stamped, caching.UserWideCacheLocator):
    """For an installation that cannot be written to."""


_LOCATORS: Final = ",".join(
    f"{__name__}.{each.__name__}" for each in (AsTold, BesideTheCode, OfTheUser)
)


def _compiled(function: Callable[..., Any], **how: Any) -> Any:
    usual = _config.CACHE_LOCATOR_CLASSES
    _config.CACHE_LOCATOR_CLASSES = _LOCATORS  # read when a function is given its cache
    try:
        return numba.njit(**_OPTIONS, **how)(function)
    finally:
        _config.CACHE_LOCATOR_CLASSES = usual


def jit(function: Callable[..., Any]) -> Any:
    """A kernel, or a helper that is called."""
    return _compiled(function)


def inlined(function: Callable[..., Any]) -> Any:
    """A helper that becomes part of its callers."""
    return _compiled(function, forceinline=True)

"""How the readers' inner loops are compiled: by numba, once a machine, and loaded from its cache from then on.

Kernels work on integers and bytes only, so that they give the same on every machine; each has its slow twin in the
tests. They let go of the GIL. Columns are handed over by address: a list of arrays costs numba more than the work on
narrow ones. Whoever calls keeps the arrays alive, contiguous and of the type stated.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)


def _choose_cache() -> None:
    """Where neither the package's folder nor the user's cache can be written, compiled code goes to the temporary
    directory. Must run before numba is imported."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    homes = [Path(__file__).parent / "__pycache__", Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")]
    nearest = [next(place for place in (home, *home.parents) if place.exists()) for home in homes]
    if not any(os.access(place, os.W_OK) for place in nearest):
        os.environ["NUMBA_CACHE_DIR"] = _private_folder()
        log.warning(
            "%s cannot be written: the readers' kernels are compiled once a boot, in %s",
            homes[0],
            os.environ["NUMBA_CACHE_DIR"],
        )


def _private_folder() -> str:
    """A temporary folder of ours alone: numba's cache is unpickled, so whoever can write it can run code."""
    folder = f"{tempfile.gettempdir()}/tokenformer-numba-{os.getuid()}"
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if ours else tempfile.mkdtemp(prefix="tokenformer-numba-")


_choose_cache()

from numba import carray, njit, types  # noqa: E402
from numba.core import cgutils  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

inline: Any = njit(nogil=True, error_model="numpy")
I64, I32, F64 = types.int64[::1], types.int32[::1], types.float64[::1]
I64_GR = types.int64[:, ::1]
READ_I64, READ_U8 = (types.Array(kind, 1, "C", readonly=True) for kind in (types.int64, types.uint8))  # or writable
ANYWHERE = 1 << 48


def kernel(*arguments: Any, returns: Any = types.void) -> Any:
    """A function compiled for these types when it is defined, or loaded from the cache."""
    return njit(returns(*arguments), cache=True, nogil=True, error_model="numpy")


def address(array: npt.NDArray[Any]) -> int:
    """Where a contiguous array's data begin."""
    found: int = array.__array_interface__["data"][0]
    return found


@intrinsic
def _pointer(_context: Any, place: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(place), generate


@inline
def int64_at(place: Any) -> Any:
    """The int64 array that begins there, of unknown length."""
    return carray(_pointer(place), (ANYWHERE,), np.int64)


@inline
def int32_at(place: Any) -> Any:
    """The same of int32."""
    return carray(_pointer(place), (ANYWHERE,), np.int32)

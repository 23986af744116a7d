"""Whether the compiled kernels are there, and if not, why."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

_NEEDED = (
    "usual_spmm",
    "BRGEMM",
    "read_leaf_gradients",
    "COLUMNS_SIDE",
    "GATHER_SIDE",
    "CROWDED_SIDE",
)  # what an extension of an earlier version does not have

NO_BRGEMM = (
    "efcn_sparse: this torch has no cpublas::brgemm, so products run on the extension's own kernels, with the same "
    "results, and in fp32 somewhat slower (docs/performance.md)"
)


@dataclass(frozen=True)
class ExtensionStatus:
    """``available``; ``reason`` says why not (empty if it is); ``path`` is the loaded file; ``brgemm``: whether some
    fp32 products run on torch's batch-reduce GEMM, or all on the extension's own kernels.
    """

    available: bool
    reason: str
    path: str
    brgemm: bool = True

    def __str__(self) -> str:
        if not self.available:
            return f"no extension: {self.reason}"
        return f"compiled extension {'' if self.brgemm else 'without brgemm '}loaded from {self.path}"


@functools.cache
def extension_status() -> ExtensionStatus:
    """The state of the compiled extension, loading it at the first call.

    For comparison and for tests, ``EFCN_EXTENSION=off`` in the environment leaves it out, ``EFCN_BRGEMM=off`` the
    batch-reduce GEMM of torch, and ``EFCN_AMX=off`` the tile registers (AMX) of a processor. One warning says that the
    installed torch has no such GEMM.

    Example:
        >>> import efcn_sparse as es
        >>> isinstance(es.extension_status().available, bool)
        True
    """
    if extension_is_off():
        return ExtensionStatus(False, "EFCN_EXTENSION=off is set", "")
    try:
        module = importlib.import_module("efcn_sparse._C")
    except ModuleNotFoundError:
        if not sys.platform.startswith("linux"):
            return ExtensionStatus(False, f"it is compiled on Linux only, not on {sys.platform}", "")
        return ExtensionStatus(False, "it was not built; reinstall with a C++ compiler and EFCN_BUILD=cpu", "")
    except (ImportError, OSError) as error:
        return ExtensionStatus(False, f"it does not load ({error}); rebuild it against the installed torch", "")
    if any(not hasattr(module, name) for name in _NEEDED):
        return ExtensionStatus(False, f"{module.__file__} is older than the Python code; rebuild the extension", "")
    if not module.BRGEMM and os.environ.get("EFCN_BRGEMM") != "off":
        warnings.warn(NO_BRGEMM, stacklevel=2)
    return ExtensionStatus(True, "", str(module.__file__), bool(module.BRGEMM))


@functools.cache
def compiled() -> Any:
    """The compiled module; ask :func:`extension_status` first whether it is there."""
    return importlib.import_module("efcn_sparse._C")


def extension_is_off() -> bool:
    """Whether ``EFCN_EXTENSION=off`` leaves the extension out on purpose."""
    return os.environ.get("EFCN_EXTENSION", "").lower() == "off"

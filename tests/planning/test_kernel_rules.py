"""What planning says of the kernels' choices by size is what their sources say, and what the kernels allocate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from efcn_sparse.planning import kernel_rules
from efcn_sparse.planning.kernel_rules import sddmm_copy, spmm_copy

_SOURCES = Path(__file__).parents[2] / "csrc" / "cpu"

CONSTANTS = {
    "GATHER_SIDE": ("pack.h", r"\bkGatherSide = (\d+)\b"),
    "GATHER_ROWS": ("pack.h", r"\bkGatherRows = (\d+)\b"),
    "DIRECT_RUN": ("spmm.cpp", r"\bkDirectK = (\d+)\b"),
    "CROWDED_BYTES": ("sddmm.cpp", r"\bsizeof\(Stored\) % (\d+) == 0\b"),
    "CROWDED_SIDE": ("sddmm.cpp", r"\bcrowded = .*\bin_side >= (\d+)\b"),
}


@pytest.mark.skipif(not _SOURCES.is_dir(), reason="the sources are not here")
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_those_of_the_sources(name: str) -> None:
    file, pattern = CONSTANTS[name]
    (number,) = re.findall(pattern, (_SOURCES / file).read_text())
    assert getattr(kernel_rules, name) == int(number)


COPIES = {  # in_side, out_side, dtype, features: what SpMM and SDDMM copy, as a share of the input
    "wide": (64, 64, torch.float32, 200, 0, 0),
    "narrow and high": (6, 64, torch.float32, 200, 0, 0),
    "narrow and low": (6, 16, torch.float32, 200, 1, 0),
    "between": (32, 64, torch.float32, 200, 1, 0),
    "crowded": (64, 64, torch.float32, 512, 0, 1),
    "crowded and narrow": (4, 8, torch.float32, 512, 1, 0),
    "half precision": (64, 64, torch.bfloat16, 200, 1, 1),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies(name: str) -> None:
    in_side, out_side, dtype, features, spmm, sddmm = COPIES[name]
    x = torch.empty(8, features, dtype=dtype, device="meta")
    assert spmm_copy(x, in_side, out_side) == spmm * x.nbytes
    assert sddmm_copy(x, in_side, out_side) == sddmm * x.nbytes

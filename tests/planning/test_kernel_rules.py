"""What the CPU kernels copy, by the constants of the extension, which tests of whole steps hold against the process."""

from __future__ import annotations

import pytest
import torch

from efcn_sparse import extension
from efcn_sparse.extension import ExtensionStatus
from efcn_sparse.planning import kernel_rules
from efcn_sparse.planning.kernel_rules import sddmm_copy, spmm_copy

COPIES = {  # in_side, out_side, dtype, features: what SpMM and SDDMM copy, as a share of the input
    "wide": (64, 64, torch.float32, 200, 0, 0),
    "narrow and high": (6, 64, torch.float32, 200, 1, 0),
    "narrow and low": (6, 16, torch.float32, 200, 1, 0),
    "between": (32, 64, torch.float32, 200, 1, 0),
    "crowded": (64, 64, torch.float32, 512, 0, 1),
    "crowded and narrow": (4, 8, torch.float32, 512, 1, 0),
    "half precision": (64, 64, torch.bfloat16, 200, 1, 1),
}


needs_extension = pytest.mark.skipif(
    not extension.extension_status().available, reason="the constants are those of the extension"
)


@needs_extension
@pytest.mark.parametrize("name", COPIES)
def test_copies(name: str) -> None:
    in_side, out_side, dtype, features, spmm, sddmm = COPIES[name]
    x = torch.empty(8, features, dtype=dtype, device="meta")
    assert spmm_copy(x, in_side, out_side) == spmm * x.nbytes
    assert sddmm_copy(x, in_side, out_side, adds=False) == sddmm * x.nbytes


@needs_extension
def test_a_long_batch_is_copied_in_parts() -> None:
    x = torch.empty(5000, 512, device="meta")  # 9.8 MiB: 1,000 rows five times, by 256
    assert sddmm_copy(x, 64, 64, adds=False) == x[:1024].nbytes
    assert sddmm_copy(x[:256], 64, 64, adds=False) == x[:256].nbytes
    wide = torch.empty(700, 8192, device="meta")
    assert sddmm_copy(wide, 64, 64, adds=False) == wide[:512].nbytes
    for whole in (sddmm_copy(x, 64, 64, adds=True), sddmm_copy(x.bfloat16(), 64, 64, adds=False) * 2):
        assert whole == x.nbytes


def test_the_reference_copies_what_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_rules, "extension_status", lambda: ExtensionStatus(False, "left out", ""))
    x = torch.empty(8, 200, device="meta")
    assert spmm_copy(x, 64, 64) == sddmm_copy(x, 64, 64, adds=False) == x.nbytes

"""Law 2: sddmm, spmm and the transposed spmm are adjoint to each other."""

from __future__ import annotations

import pytest

from tests.ops import laws
from tests.table import PATTERNS, Row, cases, pattern


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_the_three_inner_products_agree(row: Row, name: str) -> None:
    laws.operations_are_adjoint(row, pattern(name, row.device))

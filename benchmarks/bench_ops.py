"""SpMM and SDDMM against dense, torch.sparse and SciPy; every result is compared with the dense one first."""

from __future__ import annotations

import pytest

from efcn_sparse.measure import ops


@pytest.mark.usefixtures("case_group")
def test_op(case, session, compete, enforce):
    prepared = ops.prepare(case)
    compete(prepared.contest, case.rounds)
    record = session.add_ops(prepared)
    enforce(record["goal_met"], f"rate to dense must be at least {record['goal']}, got {record['rate_to_dense']:.3f}")

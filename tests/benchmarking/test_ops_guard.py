import pytest

from efcn_sparse.measure import ops
from efcn_sparse.measure.shapes import DTYPES, FULL, OPS, OpsCase, ops_goal


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_contestant_agrees_with_dense(op, dtype):
    prepared = ops.prepare(OpsCase(op, dtype, 16, 8, 64, 0.25, 1, True))
    prepared.contest.run(1)
    assert {"dense", "efcn_sparse"} <= set(prepared.contest.contestants)
    assert ("torch_sparse_bsr" in prepared.contest.contestants) == (dtype == "float32" and op != "dw")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("wrong", [lambda y: 1.01 * y, lambda y: y.roll(1, 0), lambda y: y * float("nan")])
def test_a_wrong_result_is_not_timed(op, wrong, monkeypatch):
    true = ops._ours
    monkeypatch.setattr(ops, "_ours", lambda op, operands: lambda: wrong(true(op, operands)()))
    with pytest.raises(AssertionError, match="efcn_sparse must be within"):
        ops.prepare(OpsCase(op, "float32", 16, 8, 64, 0.25, 1, False))


def test_a_wrong_rival_is_not_timed(monkeypatch):
    true = ops._sparse_rivals
    monkeypatch.setattr(
        ops, "_sparse_rivals",
        lambda op, operands: {name: (call, lambda r: 2 * r.T) for name, (call, _) in true(op, operands).items()},
    )  # fmt: skip
    with pytest.raises(AssertionError, match="torch_sparse_bsr must be within"):
        ops.prepare(OpsCase("forward", "float32", 16, 8, 64, 0.25, 1, True))


def test_goals_hold_for_the_shapes_of_the_table_only():
    case = OpsCase("dw", "float32", 64, 256, FULL.ops.size, FULL.ops.density, 1, False)
    assert ops_goal(case, has_amx=False) == 0.85
    assert ops_goal(OpsCase("dw", "float32", 64, 1024, 4096, 0.1, 1, False), False) == 0.7225
    assert ops_goal(OpsCase("dw", "float32", 64, 256, 2048, 0.1, 1, False), False) is None
    bf16 = OpsCase("forward", "bfloat16", 128, 256, 4096, 0.1, 1, False)
    assert ops_goal(bf16, has_amx=False) is None
    assert ops_goal(bf16, has_amx=True) == 0.60

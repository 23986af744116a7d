"""Bad input to the growth functions: refused with a message that names argument, expectation and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.refused import BadCall, assert_refused

P = es.BlockPattern.random((8, 12), (4, 4), 0.5, torch.Generator().manual_seed(0))  # 3 of 6 blocks
MASKED = es.BlockPattern.from_mask(torch.ones(8, 12).tril().bool(), (4, 4))  # one of its 3 blocks is whole
DY, X = torch.ones(5, 8), torch.ones(5, 12)


def layer() -> es.SparseLinear:
    return es.SparseLinear(12, 8, P)


def outside(dy: Any = DY, x: Any = X, pattern: Any = P, **more: Any) -> Callable[[], Any]:
    return lambda: es.outside_gradient_norm(dy, x, pattern, **more)


def regrow(of: Any = None, dy: Any = DY, x: Any = X, blocks: Any = 1, **more: Any) -> Callable[[], Any]:
    return lambda: es.regrow(layer() if of is None else of, dy, x, blocks=blocks, **more)


def embedded() -> Any:
    return es.embed(nn.Conv2d(1, 2, 2), torch.ones(1, 1, 3, 3))


class Sharded(torch.Tensor):
    pass


def sharded() -> es.SparseLinear:
    one = layer()
    one.values = nn.Parameter(one.values.detach().as_subclass(Sharded))
    return one


def adafactor() -> Callable[[], Any]:
    one = layer()
    optimizer = torch.optim.Adafactor(one.parameters())
    one(X).sum().backward()
    optimizer.step()
    return regrow(one, optimizer=optimizer)


def lbfgs() -> Callable[[], Any]:
    one = layer()
    optimizer = torch.optim.LBFGS([one.values])
    optimizer.state[one.values]["old_dirs"] = [torch.ones(3)]
    return regrow(one, optimizer=optimizer)


def record(model: Any, recorder: Callable[..., Any]) -> Callable[[], Any]:
    def enter() -> None:
        with recorder(model):
            pass

    return enter


BOTH: dict[str, tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = {
    "dy-is-a-list": (outside, dict(dy=[1.0]), TypeError, "dy must be a tensor, got list"),
    "x-is-none": (outside, dict(x=None), TypeError, "x must be a tensor, got NoneType"),
    "dy-of-integers": (
        outside,
        dict(dy=DY.int()),
        TypeError,
        "dy must be float64, float32, bfloat16 or float16, got torch.int32",
    ),
    "dy-too-wide": (outside, dict(dy=torch.ones(5, 9)), ValueError, "dy must be [..., 8], got [5, 9]"),
    "x-too-wide": (outside, dict(x=torch.ones(5, 13)), ValueError, "x must be [..., 12], got [5, 13]"),
    "swapped": (outside, dict(dy=X, x=DY), ValueError, "dy must be [..., 8], got [5, 12]"),
    "other-batch": (
        outside,
        dict(x=torch.ones(6, 12)),
        ValueError,
        "x must have the leading dimensions of dy, [5], got [6]",
    ),
    "other-dtype": (
        outside,
        dict(x=X.double()),
        TypeError,
        "x must have the dtype of dy, torch.float32, got torch.float64",
    ),
    "other-device": (outside, dict(x=X.to("meta")), ValueError, "x must be on the device of dy, cpu, got meta"),
    "meta": (
        outside,
        dict(dy=DY.to("meta"), x=X.to("meta")),
        ValueError,
        "dy must hold numbers, got a meta tensor of shape [5, 8]",
    ),
}


def sparse_adam() -> es.Growth:
    layer = es.SparseLinear(12, 8, MASKED)
    return es.Growth(layer, torch.optim.SparseAdam(layer.parameters()), every=2)


BAD: dict[str, BadCall] = {
    **{f"outside-{name}": (call(**given), kind, message) for name, (call, given, kind, message) in BOTH.items()},
    **{f"regrow-{name}": (regrow(**given), kind, message) for name, (_, given, kind, message) in BOTH.items()},
    "pattern-is-a-mask": (
        outside(pattern=torch.ones(8, 12)),
        TypeError,
        "pattern must be a BlockPattern, got Tensor",
    ),
    "inside-negative": (outside(inside=-1.0), ValueError, "inside must be a scalar of at least 0, got -1.0"),
    "inside-nan": (outside(inside=float("nan")), ValueError, "inside must be a scalar of at least 0, got nan"),
    "inside-a-vector": (
        outside(inside=torch.ones(2)),
        ValueError,
        "inside must be a scalar of at least 0, got shape [2]",
    ),
    "layer-is-dense": (
        regrow(nn.Linear(12, 8)),
        TypeError,
        "layer must be a SparseLinear or an embedded convolution, got Linear",
    ),
    "layer-is-meta": (
        regrow(es.SparseLinear(12, 8, P, device="meta")),
        ValueError,
        "layer.values must hold numbers, got a meta tensor of shape [3, 4, 4]",
    ),
    "layer-is-inside": (
        lambda: es.regrow(embedded().linear, torch.ones(1, 8), torch.ones(1, 9), blocks=1),
        NotImplementedError,
        "layer must be the EmbeddedConv itself, whose ties follow its blocks, got the SparseLinear inside it",
    ),
    "layer-does-not-grow": (
        lambda: es.regrow(embedded(), torch.ones(1, 8), torch.ones(1, 9), blocks=1),
        NotImplementedError,
        "layer must have the support Grown(budget) for its blocks to move, got local",
    ),
    "layer-is-sharded": (regrow(sharded()), ValueError, "layer.values must be a plain tensor, got Sharded"),
    "blocks-float": (regrow(blocks=1.0), TypeError, "blocks must be an integer, got float"),
    "blocks-bool": (regrow(blocks=True), TypeError, "blocks must be an integer, got bool"),
    "blocks-zero": (regrow(blocks=0), ValueError, "blocks must be at least 1, got 0"),
    "beyond-the-matrix": (
        regrow(blocks=4),
        ValueError,
        "blocks must be at most 3, the candidates off the support, got 4",
    ),
    "beyond-the-candidates": (
        regrow(blocks=1, candidates=P),
        ValueError,
        "blocks must be at most 0, the candidates off the support, got 1",
    ),
    "beyond-the-droppable": (
        regrow(es.SparseLinear(12, 8, MASKED), blocks=2),
        ValueError,
        "blocks must be at most 1, the stored blocks that may leave, got 2",
    ),
    "overflow": (
        regrow(dy=DY * 1e30, x=X * 1e30),
        ValueError,
        "dy and x must have a product that is finite, got infinity or NaN",
    ),
    "candidates-a-mask": (
        regrow(candidates=torch.ones(2, 3)),
        TypeError,
        "candidates must be a BlockPattern, got Tensor",
    ),
    "candidates-of-other-blocks": (
        regrow(candidates=es.BlockPattern.dense((8, 12), (2, 4))),
        ValueError,
        "candidates must be [8, 12] in blocks (4, 4), got [8, 12] in blocks (2, 4)",
    ),
    "candidates-masked": (
        regrow(candidates=es.BlockPattern.from_mask(torch.ones(8, 12).tril().bool(), (4, 4))),
        ValueError,
        "candidates must have no masks, since new blocks are whole, got a pattern with masked blocks",
    ),
    "optimizer-is-a-name": (regrow(optimizer="sgd"), TypeError, "optimizer must be a torch optimizer, got str"),
    "optimizer-of-others": (
        regrow(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
        ValueError,
        "optimizer must hold layer.values, got SGD without them",
    ),
    "optimizer-with-factored-state": (
        adafactor(),
        ValueError,
        "optimizer must keep scalars or tensors shaped like values [3, 4, 4], got state 'row_var' of shape [3, 4, 1]",
    ),
    "optimizer-of-sparse-gradients": (
        sparse_adam,
        ValueError,
        "optimizer must take dense gradients, which values have, got SparseAdam; use Adam",
    ),
    "optimizer-with-lists": (
        lbfgs(),
        ValueError,
        "optimizer must keep scalars or tensors shaped like values [3, 4, 4], got state 'old_dirs' of list",
    ),
    "leak-of-a-dense-model": (
        record(nn.Linear(2, 2), es.record_leak),
        ValueError,
        "model must hold a SparseLinear, got Linear without one",
    ),
    "factors-of-a-dense-model": (
        record(nn.ReLU(), es.record_factors),
        ValueError,
        "model must hold a SparseLinear, got ReLU without one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    assert_refused(*BAD[case])

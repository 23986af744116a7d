"""‖W‖² = ‖tied‖² + ‖untied‖² + ‖off-local‖², also where one part is tiny; and embedding leaves exact zeros."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import efcn_sparse as es
from efcn_sparse.subspace.backends import BACKENDS
from efcn_sparse.subspace.plan import make_plan
from tests.subspace.brute_force import CASES, Embedded
from tests.subspace.nets import SUPPORTS, embedded_for, shaken, weights
from tests.table import Row, rows


def norm(weights: torch.Tensor) -> float:
    return math.sqrt(math.fsum(w * w for w in weights.flatten().tolist()))


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("support", SUPPORTS)
def test_whole_and_layers(row: Row, support: str) -> None:
    model = (
        shaken(embedded_for(row, support))
        if row.dtype.itemsize > 2
        else embedded_for(row._replace(dtype=torch.float32), support).to(row.dtype)
    )
    read = es.deviation(model, backend=row.backend)
    everything = {"whole": (read, torch.cat([w.flatten() for w in weights(model).values()]))}
    everything |= {name: (read.layers[name], w) for name, w in weights(model).items()}
    for part, values in everything.values():
        assert math.hypot(part.tied, part.untied, part.off_local) == pytest.approx(norm(values), rel=1e-6)
        assert part.norm == pytest.approx(norm(values), rel=1e-12)
        assert part.delta == pytest.approx(part.off_local / norm(values), rel=1e-12)
    assert (read.off_local == 0.0) == (support == "local" or row.dtype.itemsize == 2)


TINY = ((1e-6, 0.5), (0.5, 1e-12), (1e-6, 1e-12), (0.0, 1e-20), (1e3, 1e3))


@pytest.mark.parametrize("row", rows(torch.float32, torch.float64))
@pytest.mark.parametrize(
    ("conv", "untied", "off"),
    [(conv, *TINY[(i + k) % len(TINY)]) for i, conv in enumerate(CASES) for k in (0, 2)],  # each with two, all in turn
)
def test_tiny_parts_are_read_as_well_as_large_ones(row: Row, conv: str, untied: float, off: float) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device, untied=untied, off=off)
    read = BACKENDS[row.backend].squares(case.values, make_plan(*case.ties)).cpu().numpy()
    np.testing.assert_allclose(read, case.true_squares(), rtol=1e-9, atol=0.0)
    np.testing.assert_allclose(read.sum(), (case.dense**2).sum(), rtol=1e-13)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("support", SUPPORTS)
def test_embedding_leaves_exact_zeros(row: Row, support: str) -> None:
    read = es.deviation(embedded_for(row, support), backend=row.backend)
    for part in (read, *read.layers.values()):
        assert (part.delta, part.untied, part.off_local, part.bias_untied) == (0.0, 0.0, 0.0, 0.0)
        assert part.tied == part.norm > 0.0


@pytest.mark.parametrize("row", rows())
def test_zero_weights(row: Row) -> None:
    model = embedded_for(row, "full")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    read = es.deviation(model, backend=row.backend)
    for part in (read, *read.layers.values()):
        assert (part.delta, part.tied, part.untied, part.off_local, part.norm) == (0.0, 0.0, 0.0, 0.0, 0.0)

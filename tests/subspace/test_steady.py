"""A reading has the same bits from run to run, and on any number of threads."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests.subspace.nets import SUPPORTS, embedded_for, shaken
from tests.table import Row, rows


@pytest.mark.parametrize("row", rows(torch.float32, torch.bfloat16))
@pytest.mark.parametrize("support", SUPPORTS)
def test_readings_and_projections(row: Row, support: str) -> None:
    model = shaken(embedded_for(row, support))
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = set()
    for threads in (1, 2, 2) if row.backend == "cpu" else (1, 1):
        torch.set_num_threads(threads)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(values[name])
        read = es.deviation(model, backend=row.backend)
        es.project(model, "cnn", backend=row.backend)
        bits = tuple(p.detach().cpu().to(torch.float32).numpy().tobytes() for p in model.parameters())
        found.add((read.tied, read.untied, read.off_local, bits))
    assert len(found) == 1

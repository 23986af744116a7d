"""The benchmark of moving blocks, at a size that takes a second: the same path, the same bounds."""

import importlib
import json

import pytest

from efcn_sparse.measure.machine import describe
from efcn_sparse.measure.memory import run_apart
from experiments import scale_growth


def test_a_growth_chooses_right_and_holds_one_layer_twice():
    arguments = ("--pixels", "32", "--budget", "1.2", "--threads", "1", "--leave", "0", "--json")
    result = scale_growth.GrowthResult(**json.loads(run_apart("experiments.scale_growth", *arguments)))
    assert result.wrong() == []
    assert result.moved > 500
    assert result.scored > 10 * result.stored
    assert "All within bounds." in scale_growth.markdown(result, describe(1))


def test_it_sees_scores_that_are_wrong(monkeypatch):
    regrow = importlib.import_module("efcn_sparse.growth.regrow")  # whose name in the package is the function's
    best = regrow.best_blocks

    def spoilt(scored, most, device):
        found = best(scored, most, device)
        return found._replace(blocks=found.blocks.flip(0))

    monkeypatch.setattr(regrow, "best_blocks", spoilt)
    assert scale_growth.measure(pixels=32, batch=2, budget=1.2).worst_score > 1e-3


def test_a_run_that_does_not_fit_is_refused():
    with pytest.raises(MemoryError, match=r"^pixels=192, budget=2 needs about .* and must leave 4096\.000 GiB, got "):
        scale_growth.check_fits(192, 2.0, leave=4 << 40)

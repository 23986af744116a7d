"""An arm whose blocks move: they move as often as they should, and its checkpoints know where to."""

import dataclasses

import pytest
import torch

import efcn_sparse as es
import efcn_sparse.training as training
from tests.training.runs import DILATED, GROWN, KINDS, rows


def test_blocks_move_and_their_number_stays(whole_run):
    run_dir = whole_run("grown")
    nets = [training.load_arm(run_dir, GROWN, 0, 1, epoch) for epoch in training.kept_epochs(run_dir, GROWN, 0, 1)]
    first, *_, last = [
        {name: layer.linear.pattern for name, layer in net.named_modules() if hasattr(layer, "ties")} for net in nets
    ]
    for name, pattern in first.items():
        assert last[name] != pattern
        assert last[name].nnz_blocks == pattern.nnz_blocks
    grown = [row for row in rows(run_dir, "metrics") if row["arm"] == GROWN]
    assert len({row["stored"] for row in grown}) == 1
    dilated = [row for row in rows(run_dir, "metrics") if row["arm"] == DILATED]
    assert all(0 < float(row["captured"]) < 1 for row in grown[1:] + dilated[1:])
    assert float(grown[-1]["delta"]) > 0
    torch.testing.assert_close(es.deviation(nets[-1]).delta, float(grown[-1]["delta"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("every", "moves"), [(8, True), (9, False)])
def test_a_run_too_short_for_a_move_is_refused(tmp_path, every, moves):
    """Four epochs of three steps, of which blocks may move in the first three quarters."""
    config = dataclasses.replace(KINDS["grown"], growth_every=every, arms=("cnn", GROWN))
    if moves:
        training.run_relax(config, tmp_path / "run", quiet=True)
        nets = [training.load_arm(tmp_path / "run", GROWN, 0, 1, epoch) for epoch in (1, 5)]
        before, after = ({n: m.linear.pattern for n, m in net.named_modules() if hasattr(m, "ties")} for net in nets)
        assert all(after[name] != pattern for name, pattern in before.items())
        return
    told = r"growth_every must be less than 9, three quarters of the 12 steps that efcn-grown1.5 takes, .* got 9"
    with pytest.raises(ValueError, match=told):
        training.run_relax(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json())  # begun by a version that did not refuse
    training.run_relax(config, tmp_path / "run", quiet=True)


def test_dropped_when_not_wanted():
    names = ("efcn-grown", "efcn-grown0.5", "efcn-grown1.50", "efcn-local", "efcn-dilated0", "grown2")
    for name in names:
        with pytest.raises(ValueError, match=r"^each of arms must be one of cnn, fcn, elcn, "):
            training.RelaxConfig.from_preset("digits", arms=("cnn", name))
    wanted = ("cnn", "efcn-full", "efcn-grown2", "efcn-grown1.5", "efcn-dilated2", "elcn", "efcn-grown2-dilated1")
    config = training.RelaxConfig.from_preset("digits", arms=wanted)
    assert tuple(map(str, config.embedded_arms)) == (
        "elcn", "efcn-dilated2", "efcn-grown1.5", "efcn-grown2", "efcn-grown2-dilated1", "efcn-full"
    )  # fmt: skip

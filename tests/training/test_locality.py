"""Locality in layers.csv is that of the nets that were kept; a run begun without it goes on."""

import csv

import pytest

import efcn_sparse as es
from efcn_sparse import training
from efcn_sparse.training.run.metrics import LOCALITY
from tests.training.runs import rows


def test_locality_is_noted_each_epoch_and_a_run_without_it_goes_on(tmp_path):
    config = training.RelaxConfig.from_preset(
        "digits", seeds=(0,), arms=("cnn", "efcn-full", "efcn-lowrank1"), cnn_epochs=1, relax_epochs=1,
        relax_times=(1,), train_limit=50, test_limit=50,
    )  # fmt: skip
    run = training.run_relax(config, tmp_path / "run", quiet=True)
    noted = {(row["arm"], row["epoch"], row["layer"]): row for row in rows(run, "layers")}
    for epoch in (1, 2):
        for name, found in es.locality(training.load_arm(run, "efcn-full", 0, 1, epoch)).items():
            row = noted["efcn-full", str(epoch), name]
            assert [float(row[column]) for column in LOCALITY] == pytest.approx([getattr(found, c) for c in LOCALITY])
            assert all(noted["efcn-lowrank1", str(epoch), name][column] == "" for column in LOCALITY)
    before = rows(run, "layers")
    with (run / "layers.csv").open("w", newline="") as file:
        older = [name for name in before[0] if name not in LOCALITY]
        writer = csv.DictWriter(file, older, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(before)
    (run / "checkpoints" / "efcn-lowrank1-seed0-t1-e2.safetensors").unlink()
    training.run_relax(config, run, quiet=True)
    assert list(rows(run, "layers")[0]) == list(before[0])
    assert [{**row, **dict.fromkeys(LOCALITY, "")} for row in before] == rows(run, "layers")

"""The relax protocol on a tiny problem: every arm, and the laws that hold between them."""

import csv

import pytest
import torch

import efcn_sparse as es
import efcn_sparse.training as training
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.training.epoch import evaluate
from efcn_sparse.training.nets import build_fcn
from efcn_sparse.training.readings import LAYERS, METRICS

ARMS = ("cnn", "fcn", "elcn", "efcn-dilated1", "efcn-full")


@pytest.fixture(scope="module")
def config():
    return training.RelaxConfig.from_preset(
        "digits", seeds=(0, 1), arms=ARMS, cnn_epochs=3, relax_epochs=2, fcn_epochs=1, relax_times=(0, 3),
        relaxed_lr=0.05, train_limit=60, test_limit=40, batch_size=20, threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(config, tmp_path_factory):
    return training.run_relax(config, tmp_path_factory.mktemp("runs") / "run", quiet=True)


def rows_of(run_dir, name="metrics.csv", **where):
    with (run_dir / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[key] == str(value) for key, value in where.items())]


def test_every_epoch_of_every_arm_is_recorded(config, run_dir):
    for name, columns in (("metrics.csv", METRICS), ("layers.csv", LAYERS)):
        assert (run_dir / name).read_text().splitlines()[0] == ",".join(columns)
    for seed in (0, 1):
        assert [row["epoch"] for row in rows_of(run_dir, arm="cnn", seed=seed)] == ["0", "1", "2", "3", "4", "5"]
        assert [row["epoch"] for row in rows_of(run_dir, arm="fcn", seed=seed)] == ["0", "1"]
        for arm in (*ARMS[2:], "cnn-relaxed"):
            for time in (0, 3):
                rows = rows_of(run_dir, arm=arm, seed=seed, relax_epoch=time)
                assert [row["epoch"] for row in rows] == [str(time), str(time + 1), str(time + 2)]
                assert {row["lr"] for row in rows} == {"0.05"}
    assert len(rows_of(run_dir, "layers.csv")) == 3 * len([row for row in rows_of(run_dir) if row["delta"]])
    assert not list((run_dir / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("arm", ["elcn", "efcn-dilated1", "efcn-full", "cnn-relaxed"])
def test_an_embedding_reads_as_the_cnn_it_came_from(run_dir, arm):
    for seed in (0, 1):
        (cnn,) = rows_of(run_dir, arm="cnn", seed=seed, epoch=3)
        (embedded,) = rows_of(run_dir, arm=arm, seed=seed, relax_epoch=3, epoch=3)
        assert embedded["test_accuracy"] == cnn["test_accuracy"]
        assert float(embedded["test_loss"]) == pytest.approx(float(cnn["test_loss"]), rel=1e-5)


def test_the_control_at_the_cnns_own_rate_is_the_cnn(config, tmp_path, run_dir):
    """At the same learning rate the relaxed control would repeat the CNN's own epochs, which is why it is left out."""
    from efcn_sparse.training.epoch import train_epoch

    images = training.load_data(config, 0)
    model = training.load_arm(run_dir, "cnn", 0, None, 3).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=config.lr)
    for epoch in (4, 5):
        train_epoch(model, optimiser, images, batch_size=config.batch_size, seed=0, epoch=epoch)
    (last,) = rows_of(run_dir, arm="cnn", seed=0, epoch=5)
    assert evaluate(model, images.test_x, images.test_y)[0] == pytest.approx(float(last["test_loss"]), rel=1e-6)


def test_the_parts_of_the_weights(run_dir):
    for row in rows_of(run_dir, arm="elcn"):
        assert float(row["off_local"]) == float(row["delta"]) == 0
    for arm in ("elcn", "efcn-dilated1", "efcn-full"):
        (first, *_, last) = rows_of(run_dir, arm=arm, seed=0, relax_epoch=3)
        assert float(first["delta"]) == 0
        assert float(first["untied"]) == pytest.approx(0, abs=1e-5)
        assert float(last["untied"]) > 1e-3
        assert arm == "elcn" or float(last["delta"]) > 1e-3


@pytest.mark.parametrize(
    ("arm", "time"), [("cnn", None), ("fcn", None), ("elcn", 3), ("efcn-full", 0), ("cnn-relaxed", 3)]
)
def test_a_loaded_net_has_the_recorded_accuracy(config, run_dir, arm, time):
    epoch = training.kept_epochs(run_dir, arm, 1, time)[-1]
    model = training.load_arm(run_dir, arm, 1, time, epoch)
    assert not model.training
    images = training.load_data(config, 1)
    loss, accuracy = evaluate(model, images.test_x, images.test_y)
    (row,) = rows_of(run_dir, arm=arm, seed=1, relax_epoch="" if time is None else time, epoch=epoch)
    assert accuracy == float(row["test_accuracy"])
    assert loss == pytest.approx(float(row["test_loss"]), rel=1e-5)


def test_embedded_nets_are_kept_at_embedding_midway_and_end(run_dir):
    assert training.kept_epochs(run_dir, "efcn-full", 0, 3) == [3, 4, 5]
    assert training.kept_epochs(run_dir, "cnn", 0, None) == [0, 3, 5]


def test_what_was_not_kept_or_not_run_is_told(run_dir):
    with pytest.raises(
        FileNotFoundError, match=r"cnn-seed0 must have a checkpoint of epoch 2, got those of \[0, 3, 5\]"
    ):
        training.load_arm(run_dir, "cnn", 0, None, 2)
    with pytest.raises(ValueError, match=r"arm, seed and relax_epoch must name one of .*, got elcn-seed7-t3"):
        training.load_arm(run_dir, "elcn", 7, 3, 3)


def test_the_standard_fcn_has_the_cnns_widths_and_the_initial_weights_of_linear_layers():
    fcn, full = (
        build_fcn("digits", 0),
        es.embed(training.nets.build_cnn("digits", 0), torch.randn(2, 1, 20, 20), support=es.Full()),
    )
    assert [p.shape for p in fcn.parameters()] == [p.shape for p in full.parameters()]
    for layer in (module for module in fcn.modules() if isinstance(module, EmbeddedConv)):
        weight = layer.linear.to_linear().weight.detach()
        bound = weight.shape[1] ** -0.5
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
        assert bool((weight != 0).float().mean() > 0.999)
    assert not torch.equal(fcn.head.weight, full.head.weight)


def test_the_callers_threads_and_generators_are_left_alone(config, tmp_path):
    small = training.RelaxConfig.from_preset(
        "digits", arms=("cnn",), seeds=(0,), cnn_epochs=1, train_limit=20, test_limit=20, threads=1
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    training.run_relax(small, tmp_path / "run", quiet=True)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_a_cnn_that_diverged_is_told(tmp_path):
    wild = training.RelaxConfig.from_preset(
        "digits", arms=("cnn", "elcn"), seeds=(0,), cnn_epochs=2, relax_times=(2,), relax_epochs=1, lr=1e9,
        train_limit=40, test_limit=20, batch_size=10, threads=1,
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"^lr must keep the CNN finite, got 1000000000.0: seed 0 diverged by epoch 2$"
    ):
        training.run_relax(wild, tmp_path / "run", quiet=True)

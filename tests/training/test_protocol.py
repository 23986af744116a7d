"""The relax protocol on a tiny problem: every arm, and the laws that hold between them."""

import pytest
import torch

import efcn_sparse as es
import efcn_sparse.training as training
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.training.arms import FCN
from efcn_sparse.training.run.epoch import evaluate
from efcn_sparse.training.run.metrics import LAYERS, METRICS
from efcn_sparse.training.run.nets import build_like
from tests.training.runs import DIGITS, rows, task_data

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


def test_every_epoch_of_every_arm_is_recorded(config, run_dir):
    for name, columns in (("metrics.csv", METRICS), ("layers.csv", LAYERS)):
        assert (run_dir / name).read_text().splitlines()[0] == ",".join(columns)
    for seed in (0, 1):
        assert [row["epoch"] for row in rows(run_dir, arm="cnn", seed=seed)] == ["0", "1", "2", "3", "4", "5"]
        assert [row["epoch"] for row in rows(run_dir, arm="fcn", seed=seed)] == ["0", "1"]
        for arm in (*ARMS[2:], "cnn-relaxed"):
            for time in (0, 3):
                relaxed = rows(run_dir, arm=arm, seed=seed, relax_epoch=time)
                assert [row["epoch"] for row in relaxed] == [str(time), str(time + 1), str(time + 2)]
                assert {row["lr"] for row in relaxed} == {"0.05"}
    assert len(rows(run_dir, "layers")) == 3 * len([row for row in rows(run_dir) if row["delta"]])
    assert not list((run_dir / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("arm", ["elcn", "efcn-dilated1", "efcn-full", "cnn-relaxed"])
def test_an_embedding_reads_as_the_cnn_it_came_from(run_dir, arm):
    for seed in (0, 1):
        (cnn,) = rows(run_dir, arm="cnn", seed=seed, epoch=3)
        (embedded,) = rows(run_dir, arm=arm, seed=seed, relax_epoch=3, epoch=3)
        assert embedded["test_accuracy"] == cnn["test_accuracy"]
        assert float(embedded["test_loss"]) == pytest.approx(float(cnn["test_loss"]), rel=1e-5)


def test_the_control_at_the_cnns_own_rate_is_the_cnn(config, tmp_path, run_dir):
    """At the same learning rate the relaxed control would repeat the CNN's own epochs, which is why it is left out."""
    from efcn_sparse.training.run.epoch import Training, train_epoch

    model, learnt = training.load_arm(run_dir, "cnn", 0, None, 3), task_data(config, 0)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for epoch in (4, 5):
        train_epoch(Training(learnt, config.batch_size, 0, model, optimizer), epoch)
    (last,) = rows(run_dir, arm="cnn", seed=0, epoch=5)
    assert evaluate(model, learnt, "test")["loss"] == pytest.approx(float(last["test_loss"]), rel=1e-6)


def test_the_parts_of_the_weights(run_dir):
    for row in rows(run_dir, arm="elcn"):
        assert float(row["off_local"]) == float(row["delta"]) == 0
    for arm in ("elcn", "efcn-dilated1", "efcn-full"):
        (first, *_, last) = rows(run_dir, arm=arm, seed=0, relax_epoch=3)
        assert float(first["delta"]) == 0
        assert float(first["untied"]) == pytest.approx(0, abs=1e-5)
        assert float(last["untied"]) > 1e-3
        assert arm == "elcn" or float(last["delta"]) > 1e-3


def test_what_the_support_holds_and_what_it_leaves_out(run_dir):
    for name in ("metrics", "layers"):
        for arm in ARMS:
            stepped = [row for row in rows(run_dir, name, arm=arm) if row["epoch"] != row["relax_epoch"]]
            for row in stepped if arm in ("cnn", "fcn") else ():
                assert (row["stored"], row["leak"], row["captured"]) == ("", "", "")
            for row in stepped if arm not in ("cnn", "fcn") else ():
                leak, captured = float(row["leak"]), float(row["captured"])
                if arm == "efcn-full":
                    assert (leak, captured) == (0.0, 1.0)
                else:
                    assert 0 < leak < 1
                    assert captured == 0 if arm == "elcn" else 0 < captured < 1
        for row in (row for row in rows(run_dir, name) if row["delta"] and row["epoch"] == row["relax_epoch"]):
            assert (row["leak"], row["captured"]) == ("", "")  # no step has been taken
            assert int(row["stored"]) > 0


def test_the_numbers_stored_are_those_of_the_support(run_dir):
    supports = {"elcn": es.Local(), "efcn-dilated1": es.Dilated(1), "efcn-full": es.Full()}
    for arm, support in supports.items():
        model = training.load_arm(run_dir, arm, 0, 3, 5)
        layers = {name: m for name, m in model.named_modules() if isinstance(m, EmbeddedConv)}
        expected = {name: support.entries(layer.geometry) for name, layer in layers.items()}
        (row,) = rows(run_dir, arm=arm, seed=0, relax_epoch=3, epoch=5)
        of_layers = rows(run_dir, "layers", arm=arm, seed=0, relax_epoch=3, epoch=5)
        assert {one["layer"]: int(one["stored"]) for one in of_layers} == expected
        assert int(row["stored"]) == sum(expected.values())


def test_the_leak_is_that_of_the_last_whole_batch(config, run_dir):
    """From the checkpoint before the epoch, the same steps once more, with gradients of the dense matrices."""
    from efcn_sparse.training.data.examples import _rows
    from efcn_sparse.training.data.images import order_of_epoch

    images = training.load_data(config, 0)
    model = training.load_arm(run_dir, "efcn-dilated1", 0, 3, 4).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.relaxed_lr)
    *before, last = order_of_epoch(0, 5, len(images.train_x)).split(config.batch_size)
    assert len(last) == config.batch_size
    for chosen in before:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(_rows(images.train_x, chosen)), images.train_y[chosen]).backward()
        optimizer.step()
    layers = [m for m in model.modules() if isinstance(m, EmbeddedConv)]
    held = [layer.linear.pattern.to_mask() for layer in layers]
    model.double()
    for layer in layers:
        layer.linear = layer.linear.to_linear()
    loss = torch.nn.functional.cross_entropy(model(_rows(images.train_x, last).double()), images.train_y[last])
    loss.backward()
    squares = [layer.linear.weight.grad.square() for layer in layers]
    outside = sum(float(square[~mask].sum()) for square, mask in zip(squares, held, strict=True))
    (row,) = rows(run_dir, arm="efcn-dilated1", seed=0, relax_epoch=3, epoch=5)
    assert float(row["leak"]) == pytest.approx(outside / sum(float(square.sum()) for square in squares), rel=1e-4)


def test_a_last_batch_that_is_not_whole_is_not_the_one_that_is_watched(config):
    import contextlib

    from efcn_sparse.training.run.epoch import Training, train_epoch

    learnt, sizes = task_data(config, 0), []
    model = DIGITS.fresh(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    @contextlib.contextmanager
    def watch(model):
        hook = model.register_forward_hook(lambda module, x, y: sizes.append(len(y)))
        yield "seen"
        hook.remove()

    for batch_size, expected in ((25, 25), (20, 20), (60, 60), (70, 60)):
        sizes.clear()
        training = Training(learnt, batch_size, 0, model, optimizer)
        assert train_epoch(training, 1, watch) == "seen"
        assert sizes == [expected]
        assert train_epoch(training, 1) is None


@pytest.mark.parametrize(
    ("arm", "time"), [("cnn", None), ("fcn", None), ("elcn", 3), ("efcn-full", 0), ("cnn-relaxed", 3)]
)
def test_a_loaded_net_has_the_recorded_accuracy(config, run_dir, arm, time):
    epoch = training.kept_epochs(run_dir, arm, 1, time)[-1]
    model = training.load_arm(run_dir, arm, 1, time, epoch)
    assert not model.training
    found = evaluate(model, task_data(config, 1), "test")
    (row,) = rows(run_dir, arm=arm, seed=1, relax_epoch="" if time is None else time, epoch=epoch)
    assert found["accuracy"] == float(row["test_accuracy"])
    assert found["loss"] == pytest.approx(float(row["test_loss"]), rel=1e-5)


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
        build_like(FCN, DIGITS, 0),
        es.embed(DIGITS.fresh(0), torch.randn(2, 1, 20, 20), support=es.Full()),
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

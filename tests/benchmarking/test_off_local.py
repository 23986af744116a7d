"""What supports hold of an off-local part, against brute force on nets small enough for it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.measure import machine
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.images import Images
from experiments.off_local import __main__ as command
from experiments.off_local import curves
from experiments.off_local.cut import kept, mask_of, rank_of, with_off_local
from experiments.off_local.figure import draw
from experiments.off_local.layers import Layer, layers_of, off_local_gradients, off_local_weights
from experiments.off_local.low_rank import low_rank
from experiments.off_local.measure import BUDGETS, CUTS, measure
from experiments.off_local.page import markdown
from experiments.off_local.train import LOW_RANK, TRAINED, restrict

METHODS = ("entries", "blocks", "small blocks", "dilated")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


def example(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 8, 8), torch.randint(3, (count,))


@pytest.fixture
def net() -> nn.Module:
    return es.embed(cnn(), example()[0], support=es.Full())


@pytest.fixture
def layer(net: nn.Module) -> Layer:
    return layers_of(net)["2"]


def off_local(layer: Layer) -> Tensor:
    # heavy tails, so that what is chosen matters
    return (torch.randn(layer.local.shape, dtype=torch.float64) ** 3).masked_fill(layer.local, 0)


def test_layers_know_their_receptive_fields(net: nn.Module) -> None:
    for name, layer in layers_of(net).items():
        module = net.get_submodule(name)
        assert isinstance(module, EmbeddedConv)
        assert layer.local_weights == es.Local().entries(layer.geometry)
        for radius in range(int(layer.dilated.max()) + 1):
            assert int((layer.dilated <= radius).sum()) == es.Dilated(radius).entries(layer.geometry)
        conv = module.to_conv()
        nn.init.ones_(conv.weight)
        units = torch.eye(layer.geometry.in_features).view(-1, *layer.geometry.input_size, layer.geometry.in_channels)
        reached = nn.functional.conv2d(units.permute(0, 3, 1, 2), conv.weight, None, conv.stride, conv.padding)
        assert torch.equal(reached.permute(0, 2, 3, 1).flatten(1).T != 0, layer.local)


def test_the_gradient_is_the_product_of_its_factors(net: nn.Module) -> None:
    x, y = example()
    layers = layers_of(net)
    gradients = off_local_gradients(net, layers, x, y)
    assert all(parameter.grad is None for parameter in net.parameters())
    with es.record_factors(net) as factors:
        nn.functional.cross_entropy(net(x), y).backward()
    for name, layer in layers.items():
        dy, units = factors[f"{name}.linear"]
        expected = (dy.T @ units).double().masked_fill(layer.local, 0)
        assert expected.norm() > 0
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", [*METHODS, "low rank, fitted"])
def test_what_is_kept_is_what_the_curve_says(layer: Layer, method: str) -> None:
    matrix = off_local(layer)
    for budget in (*BUDGETS, 0.7, 1.5):
        numbers = budget * layer.local_weights
        rest = matrix - kept(matrix, layer, method, numbers)
        share = 1 - float(rest.square().sum() / matrix.square().sum())
        curve = curves.curves_of(matrix, layer, [numbers])[method]
        assert share == pytest.approx(curve.at(numbers), abs=1e-5)
        assert not bool(rest[layer.local].any())


@pytest.mark.parametrize("method", METHODS)
def test_a_support_stores_no_more_than_it_may(layer: Layer, method: str) -> None:
    matrix = off_local(layer)
    for budget in (0.1, *BUDGETS):
        numbers = int(budget * layer.local_weights)
        mask = mask_of(matrix.square(), layer, method, numbers)
        assert int(mask.sum()) <= numbers
        assert not bool((mask & layer.local).any())
    assert bool((mask_of(matrix.square(), layer, method, layer.off_local_weights) == ~layer.local).all())


def test_no_sparse_support_beats_the_best_entries(layer: Layer) -> None:
    matrix = off_local(layer)
    best = curves.entries(matrix, layer)
    for name in METHODS[1:]:
        curve = curves.curves_of(matrix, layer, [])[name]
        assert all(share <= best.at(stored) + 1e-12 for stored, share in zip(curve.stored, curve.share, strict=True))
        assert curve.share[-1] == pytest.approx(1)
        assert curve.stored[-1] == layer.off_local_weights


def test_the_best_blocks_are_stored_first(layer: Layer) -> None:
    (height, width), matrix = layer.block_shape, off_local(layer)
    free = [
        (float(matrix[r : r + height, c : c + width].square().sum()), r, c)
        for r in range(0, matrix.shape[0], height)
        for c in range(0, matrix.shape[1], width)
        if not bool(layer.local[r : r + height, c : c + width].any())
    ]
    touched = layer.spread(layer.block_sums(layer.local) > 0) & ~layer.local
    for count in (1, 3, len(free) // 2):
        expected = float(matrix[touched].square().sum()) + sum(square for square, _, _ in sorted(free)[-count:])
        numbers = int(touched.sum()) + count * height * width
        assert curves.blocks(matrix, layer).at(numbers) == pytest.approx(expected / float(matrix.square().sum()))


def test_low_rank_finds_what_was_planted_under_a_mask() -> None:
    true = torch.randn(60, 3, dtype=torch.float64) @ torch.randn(3, 50, dtype=torch.float64)
    free = torch.rand(true.shape) < 0.3
    seen = true.masked_fill(free, 0)
    (plain,), (fitted,) = low_rank(seen, [3]), low_rank(seen, [3], free, sweeps=300)
    errors = [float((fit - true)[~free].norm() / true[~free].norm()) for fit in (plain, fitted)]
    assert errors[1] < 1e-6 < 0.1 < errors[0]


def test_each_sweep_fits_better(layer: Layer) -> None:
    matrix = off_local(layer)
    errors = []
    for sweeps in (0, 1, 2, 5, 20):
        (fit,) = low_rank(matrix, [4], layer.local, sweeps=sweeps)
        assert torch.linalg.matrix_rank(fit) <= 4
        errors.append(float((fit - matrix)[~layer.local].norm()))
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_cutting_everything_leaves_the_local_net(net: nn.Module) -> None:
    x, y = example()
    layers = layers_of(net)
    for _ in range(3):
        nn.functional.cross_entropy(net(x), y).backward()
        torch.optim.SGD(net.parameters(), lr=0.5).step()
    weights = off_local_weights(net, layers)
    torch.testing.assert_close(with_off_local(net, weights, layers)(x), net(x))
    cut = with_off_local(net, {name: torch.zeros_like(w) for name, w in weights.items()}, layers)
    assert es.deviation(cut).delta == 0 < es.deviation(net).delta
    assert es.deviation(cut).untied == pytest.approx(es.deviation(net).untied)


@pytest.mark.parametrize("method", TRAINED)
def test_restricted_nets_train_nothing_else(method: str) -> None:
    x, y = example()
    small = cnn()
    full = es.embed(small, x, support=es.Full())
    layers = layers_of(full)
    gradients = off_local_gradients(full, layers, x, y)
    start = es.embed(small, x, support=es.Local()) if method in LOW_RANK else full
    net = restrict(start, layers, gradients, method, 1.0)
    torch.testing.assert_close(net(x), small(x))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    for name, layer in layers.items():
        numbers = layer.local_weights
        if method in LOW_RANK:
            low = net.get_submodule(name).linear
            added = (low.left @ low.right.T).detach()
            assert low.left.shape[1] == rank_of(layer, numbers)
            assert bool(added.any())
            units = torch.randn(5, layer.geometry.in_features)
            masked = added if method == "low rank, everywhere" else added.masked_fill(layer.local, 0)
            torch.testing.assert_close(low(units), low.linear(units) + units @ masked.T)
        else:
            moved = off_local_weights(net, layers)[name] != 0
            allowed = mask_of(gradients[name].square(), layer, method, numbers)
            assert bool((moved <= allowed).all())
            assert int(moved.sum()) > 0 or int(allowed.sum()) == 0


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    torch.manual_seed(0)
    images = Images(*example(40), *example(20))
    net = es.embed(cnn(), images.train_x[:2], support=es.Full())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)

    def nets():
        yield 3, net
        for epoch in (4, 5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images.train_x), images.train_y).backward()
            optimizer.step()
            yield epoch, net

    found, _, gradients = measure(nets(), images, seed=0, time=3, batch_size=10)
    assert set(gradients) == {"0", "2"}
    return json.loads(json.dumps(found))


def test_a_record_holds_shares(record: dict) -> None:
    assert record["epochs"] == 2
    assert record["delta"] > 0
    for layer in record["layers"].values():
        for methods in layer["curves"].values():
            for curve in methods.values():
                assert all(0 <= share <= 1 for share in curve["at"])
                assert curve["at"] == sorted(curve["at"])
            assert all(
                fitted >= svd - 1e-5
                for fitted, svd in zip(methods["low rank, fitted"]["at"], methods["low rank"]["at"], strict=True)
            )
        for others in layer["chosen"].values():
            assert all(
                best >= other - 1e-9
                for best, other, budget in zip(layer["chosen"]["weights"], others, BUDGETS, strict=True)
                if others is not layer["chosen"]["chance"]
            )
    assert set(record["cut"]) == {"nothing", *CUTS}


def test_the_page_and_the_figure_tell_the_record(record: dict, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    page = markdown([record, record], machine.describe(1))
    share = 100 * record["layers"]["2"]["curves"]["weights"]["blocks"]["at"][2]
    assert f"{share:.0f} ({share:.0f}–{share:.0f})" in page
    assert {path.name for path in draw([record], tmp_path)} == {"off_local_capture.png", "off_local_capture.svg"}


def test_a_run_without_the_arm_is_refused(tmp_path, capsys) -> None:
    assert command.main(["--run", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "run_dir must be a run directory" in capsys.readouterr().err


def test_another_preset_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(RelaxConfig.from_preset("vanilla-cifar10").to_json())
    assert command.main(["--run", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "must be of the preset digits" in capsys.readouterr().err

"""Whatever fills modules without asking them reaches the pattern too, and another pattern never computes in silence."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import efcn_sparse as es
from efcn_sparse import BlockPattern

INDICES = ("crow_indices", "col_indices", "mask_index", "masks")
X = torch.randn(3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _patterns(seed: int) -> list[BlockPattern]:
    generator = torch.Generator().manual_seed(seed)
    first = BlockPattern.random((20, 24), (4, 6), 0.5, generator)
    rows, cols = torch.tensor([0, 1, 2]), torch.randperm(5, generator=generator)[:3]
    bare = BlockPattern.from_blocks(rows, cols, (12, 20), (4, 4))
    index = torch.full((3,), -1)
    index[seed % 3] = 0
    mask = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    return [first, BlockPattern.from_bsr(*_indices(bare), (12, 20), (4, 4), mask_index=index, masks=mask)]


def _indices(pattern: BlockPattern) -> tuple[Tensor, Tensor]:
    return pattern.crow_indices, pattern.col_indices


def _net(seed: int, device: str = "cpu") -> nn.Module:
    """Two layers, one of them masked; patterns of every seed have arrays of the same shapes."""
    patterns = _patterns(seed)
    torch.manual_seed(seed)
    with torch.device(device):
        layers = [es.SparseLinear(p.shape[1], p.shape[0], p, dtype=torch.float64) for p in patterns]
    return nn.ModuleDict({"a": layers[0], "b": layers[1]})


def _run(net: nn.Module, x: Tensor = X) -> Tensor:
    return net["b"](net["a"](x).tanh())


def _copy_in_place(net: nn.Module, state: dict[str, Tensor]) -> None:
    own = net.state_dict()
    for name, tensor in state.items():
        own[name].copy_(tensor)


def _set_attributes(net: nn.Module, state: dict[str, Tensor]) -> None:
    """As ``from_pretrained`` of transformers does: no hook of the module is called."""
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        module = net.get_submodule(path)
        held = getattr(module, leaf)
        assert held.shape == tensor.shape
        setattr(module, leaf, tensor.clone() if leaf in module._buffers else nn.Parameter(tensor.clone()))


def _set_in_dicts(net: nn.Module, state: dict[str, Tensor]) -> None:
    """As ``load_checkpoint_and_dispatch`` of accelerate does."""
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        module = net.get_submodule(path)
        assert leaf in module._parameters or leaf in module._buffers
        if leaf in module._buffers:
            module._buffers[leaf] = tensor.clone()
        else:
            module._parameters[leaf] = nn.Parameter(tensor.clone())


ROADS: dict[str, Callable[[nn.Module, dict[str, Tensor]], None]] = {
    "in place": _copy_in_place,
    "attributes": _set_attributes,
    "dicts": _set_in_dicts,
}


def test_the_nets_of_this_file_differ_in_their_patterns_alone() -> None:
    one, other = _net(1), _net(2)
    assert one["a"].pattern != other["a"].pattern
    assert one["b"].pattern != other["b"].pattern
    assert {name: t.shape for name, t in one.state_dict().items()} == {
        name: t.shape for name, t in other.state_dict().items()
    }
    assert {name.rpartition(".")[2] for name, _ in one.named_buffers()} == set(INDICES)


@pytest.mark.parametrize("cover", [True, False])
def test_sparsified_on_the_meta_device_and_filled(cover: bool) -> None:
    """As loaders make a class that sparsifies in its ``__init__``: as many blocks, at places that the file brings."""
    rules = {"0": dict(density=0.3, block_shape=(8, 4), cover=cover)}
    torch.manual_seed(1)
    source = es.sparsify(nn.Sequential(nn.Linear(18, 44)), rules)
    with torch.device("meta"):
        net = es.sparsify(nn.Sequential(nn.Linear(18, 44)), rules)
    assert net[0].pattern != source[0].pattern
    _set_attributes(net, source.state_dict())
    x = torch.randn(3, 18)
    assert torch.equal(net(x), source(x))
    assert net[0].pattern == source[0].pattern


@torch.no_grad()
@pytest.mark.parametrize("road", ROADS)
def test_filled_with_the_same_pattern(road: str) -> None:
    net, source = _net(1), _net(1)
    with torch.no_grad():
        source["a"].values.mul_(3)
    ROADS[road](net, source.state_dict())
    assert torch.equal(_run(net), _run(source))


@torch.no_grad()
@pytest.mark.parametrize("road", ROADS)
def test_filled_with_another_pattern(road: str) -> None:
    net, source = _net(1), _net(2)
    state, before = copy.deepcopy(source.state_dict()), copy.deepcopy(net.state_dict())
    ROADS[road](net, state)
    mine, theirs = _net(1)["a"].pattern.fingerprint, source["a"].pattern.fingerprint
    for use in (
        _run,
        lambda n: n["a"].to_linear(),
        lambda n: n.double(),
        lambda n: n["a"].weight,
        lambda n: es.explain(n["a"]),
    ):
        with pytest.raises(ValueError, match="layer's pattern") as error:
            use(net)
        assert str(error.value) == (
            "SparseLinear(24, 20): crow_indices, col_indices and masks must be those of the layer's pattern "
            f"{mine}, got {theirs} written over them; load_state_dict gives them back, and adopt_patterns(model) "
            "takes the new pattern over, if the values were written with it"
        )
    twin = copy.deepcopy(net)
    for copied in (twin, pickle.loads(pickle.dumps(net))):
        with pytest.raises(ValueError, match="layer's pattern"):
            _run(copied)
    assert es.adopt_patterns(twin) == ["a", "b"]
    assert torch.equal(_run(twin), _run(source))
    net.load_state_dict(before)
    assert torch.equal(_run(net), _run(_net(1)))


@torch.no_grad()
@pytest.mark.parametrize("road", ["attributes", "dicts"])
def test_a_net_without_numbers_takes_the_pattern_that_it_is_filled_with(road: str) -> None:
    source = _net(2)
    net = _net(1, "meta")
    assert net["a"].values.is_meta
    ROADS[road](net, source.state_dict())
    assert torch.equal(_run(net), _run(source))
    assert net["a"].pattern == source["a"].pattern
    ROADS[road](net, _net(1).state_dict())  # it has numbers now
    with pytest.raises(ValueError, match="layer's pattern"):
        _run(net)


@torch.no_grad()
def test_arrays_that_make_no_pattern() -> None:
    net = _net(1)
    net["a"].col_indices.fill_(1000)
    with pytest.raises(
        ValueError, match=r"got none that fits \(col_indices must lie in \[0, 4\), got values from 1000"
    ):
        _run(net)


def test_an_average_of_a_net_whose_blocks_move() -> None:
    net = _net(1)
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    assert torch.equal(_run(averaged.module), _run(net))
    layer = net["a"]
    es.regrow(layer, torch.randn(9, 20, dtype=torch.float64), torch.randn(9, 24, dtype=torch.float64), blocks=3)
    averaged.update_parameters(net)
    with pytest.raises(ValueError, match="layer's pattern"):
        _run(averaged.module)


def test_ensembles() -> None:
    def outputs(members: list[nn.Module]) -> Tensor:
        base = copy.deepcopy(members[0]).to("meta")
        return vmap(lambda *state: functional_call(_Whole(base), _renamed(state), (X,)))(*stack_module_state(members))

    alike = [_net(1), _net(1), _net(1)]
    with torch.no_grad():
        for factor, member in enumerate(alike):
            member["a"].values.mul_(factor)
    torch.testing.assert_close(outputs(alike), torch.stack([_run(member) for member in alike]))
    with pytest.raises(ValueError, match="layer's pattern"):
        outputs([_net(1), _net(1), _net(2)])


@pytest.mark.parametrize("seed", [1, 2])
def test_an_ensemble_stacked_along_the_last_dimension_and_once_more(seed: int) -> None:
    members = [_net(1)["b"], _net(1)["b"], _net(seed)["b"]]
    x, base = torch.randn(3, 20, dtype=torch.float64), copy.deepcopy(members[0]).to("meta")
    state = {
        name: tensor.movedim(0, -1).unsqueeze(1)
        for part in stack_module_state(members)
        for name, tensor in part.items()
    }

    def outputs() -> Tensor:
        call = vmap(lambda state: functional_call(base, state, (x,)), in_dims=-1)
        return vmap(call, in_dims=1)(state)

    if seed == 1:
        torch.testing.assert_close(outputs(), torch.stack([member(x) for member in members])[None])
    else:
        with pytest.raises(ValueError, match="layer's pattern"):
            outputs()


class _Whole(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return _run(self.net, x)


def _renamed(state: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    return {f"net.{name}": tensor for part in state for name, tensor in part.items()}


def test_values_of_another_pattern() -> None:
    one, other = _net(1)["a"], _net(2)["a"]
    expected = (
        f"SparseLinear(24, 20): values must be those of the layer's pattern {one.pattern.fingerprint}, "
        f"got those of {other.pattern.fingerprint}"
    )
    for swap in (
        lambda: functional_call(one, dict(other.named_parameters()), (X,)),
        lambda: functional_call(one, dict(other.named_buffers()), (X,)),
    ):
        with pytest.raises(ValueError, match="layer's pattern"):
            swap()
    one.values = other.values
    with pytest.raises(ValueError, match="layer's pattern") as error:
        one(X)
    assert str(error.value) == expected


def test_tied_values_whose_blocks_move_in_one_layer() -> None:
    one, tied = _net(1)["a"], _net(1)["a"]
    tied.values = one.values
    assert torch.equal(one.to_linear().weight, tied.to_linear().weight)
    es.regrow(one, torch.randn(9, 20, dtype=torch.float64), torch.randn(9, 24, dtype=torch.float64), blocks=3)
    one(X)
    with pytest.raises(ValueError, match="values must be those of the layer's pattern"):
        tied(X)


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: net.half().double(),
        lambda net: net.type(torch.float64),
        lambda net: net.share_memory(),
    ],
    ids=["deepcopy", "pickle", "half", "type", "share"],
)  # fmt: skip
def test_what_is_done_to_whole_modules(change: Callable[[nn.Module], nn.Module]) -> None:
    net = _net(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half())
    expected = _run(net)
    changed = change(net)
    assert torch.equal(_run(changed), expected)
    assert {tensor.dtype for tensor in changed.buffers()} == {torch.int32, torch.uint8}


def test_to_empty_empties_parameters_only() -> None:
    net = _net(1).to("meta")
    net.to_empty(device="cpu")
    net["a"].reset_parameters()
    assert net["a"].pattern == _net(1)["a"].pattern
    net.load_state_dict(_net(1).state_dict())
    assert torch.equal(_run(net), _run(_net(1)))


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        net = _net(1)
        expected = _run(net)
    with torch.no_grad():
        assert torch.equal(_run(net), expected)


def test_compiled() -> None:
    layer = _net(1)["a"]
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), layer(X))


def test_a_convolution_whose_blocks_have_moved() -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 4, 6, 6)
    net, fresh = (es.embed(cnn, x, support=es.Grown(1.5)) for _ in range(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    growth = es.Growth(net, optimizer, every=1)
    with growth.watch():
        net(x).square().mean().backward()
    optimizer.step()
    assert growth.step()
    net(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        _copy_in_place(fresh, net.state_dict())
    with pytest.raises(ValueError, match="layer's pattern"):
        fresh(x)
    assert es.adopt_patterns(fresh) == ["0"]
    assert torch.equal(fresh(x), net(x))
    assert es.deviation(fresh).delta == es.deviation(net).delta


@pytest.mark.parametrize(("decay", "in_features", "lost"), [(0.9, 24, 1), (0.99, 24, 0), (0.9999, 20_000, 3)])
def test_an_average_that_cut_indices_off_is_no_pattern(decay: float, in_features: int, lost: int) -> None:
    """0.9 · 3 + 0.1 · 3 is 2 as an integer: such arrays may make a pattern, of other places than the values'."""
    generator = torch.Generator().manual_seed(0)
    pattern = BlockPattern.random((40, in_features), (8, 1), 0.5, generator)
    layer = es.SparseLinear(in_features, 40, pattern)
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(4):
        average.update_parameters(layer)
    pairs = zip(layer.buffers(), average.module.buffers(), strict=True)
    assert max(int((own - averaged).max()) for own, averaged in pairs) == lost
    x = torch.randn(3, in_features)
    if lost:
        state = {**dict(average.module.named_parameters()), **dict(average.module.named_buffers())}
        for use in (
            lambda: average(x),
            lambda: es.adopt_patterns(average),
            lambda: es.adopt_patterns(layer, state),
            lambda: layer.load_state_dict(state),
        ):
            with pytest.raises((ValueError, RuntimeError), match=r"cut off to integers.*use_buffers=False"):
                use()
        for own, right in zip(average.module.buffers(), layer.buffers(), strict=True):
            own.copy_(right)
    torch.testing.assert_close(average(x), layer(x))


def test_a_block_that_moved_to_the_place_before_is_adopted() -> None:
    grid = torch.ones(2, 6, dtype=torch.bool)
    grid[:, 2] = False
    moved = grid.clone()
    moved[0, 2:4] = torch.tensor([True, False])
    old, new = (BlockPattern.from_mask(mask, (4, 4), shape=(8, 24)) for mask in (grid, moved))
    layer = es.SparseLinear(24, 8, old)
    assert es.adopt_patterns(layer, es.SparseLinear(24, 8, new).state_dict()) == [""]


def _train(_: int, layer: es.SparseLinear, x: Tensor) -> None:
    layer(x).sum().backward()
    with torch.no_grad():
        layer.values += 1


def test_a_layer_is_an_argument_of_processes() -> None:
    layer = es.SparseLinear(24, 8, BlockPattern.random((8, 24), (8, 8), 1.0)).share_memory()
    before = layer.values.clone()
    multiprocessing.spawn(_train, args=(layer, torch.randn(3, 24)), nprocs=1)
    torch.testing.assert_close(layer.values, before + 1)


def test_the_argument_is_called_as_in_torch() -> None:
    layer = es.SparseLinear(24, 8, BlockPattern.random((8, 24), (8, 8), 1.0))
    x = torch.randn(3, 24)
    assert torch.equal(layer(input=x), layer(x))

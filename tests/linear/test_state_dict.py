"""The pattern travels in the state dict; another pattern is refused with both fingerprints."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune, remove_weight_norm, weight_norm

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests.table import PATTERNS, pattern


def _layer(p: BlockPattern, seed: int = 0, bias: bool = True) -> es.SparseLinear:
    torch.manual_seed(seed)
    return es.SparseLinear(p.shape[1], p.shape[0], p, bias)


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == twin and torch.equal(tensor, same) for (name, tensor), (twin, same) in pairs)


@pytest.mark.parametrize("name", PATTERNS)
def test_round_trip(name: str) -> None:
    layer, other = _layer(pattern(name)), _layer(pattern(name), seed=1)
    result = other.load_state_dict(layer.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert _same(layer, other)


@pytest.mark.parametrize("name", PATTERNS)
def test_through_files(name: str, tmp_path: Path) -> None:
    layer = nn.Sequential(_layer(pattern(name)), nn.ReLU())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    safetensors.torch.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    for state in (torch.load(file, weights_only=True), safetensors.torch.load_file(tmp_path / "layer.safetensors")):
        other = nn.Sequential(_layer(pattern(name), seed=1), nn.ReLU())
        other.load_state_dict(state)
        assert _same(layer, other)


def test_keys() -> None:
    assert list(_layer(pattern("square")).state_dict()) == [
        "values",
        "bias",
        "crow_indices",
        "col_indices",
    ]
    masked = list(nn.ModuleDict({"net": _layer(pattern("masked"), bias=False)}).state_dict())
    assert masked == [
        "net.values",
        "net.crow_indices",
        "net.col_indices",
        "net.mask_index",
        "net.masks",
    ]


def test_the_pattern_can_be_rebuilt_from_the_state() -> None:
    p = pattern("masked-ragged")
    state = _layer(p).state_dict()
    again = BlockPattern.from_bsr(
        state["crow_indices"],
        state["col_indices"],
        p.shape,
        tuple(state["values"].shape[1:]),
        mask_index=state["mask_index"],
        masks=state["masks"],
    )
    assert again == p


def test_two_layers_of_one_pattern_go_into_one_safetensors_file(tmp_path: Path) -> None:
    layer = _layer(pattern("masked"))
    net = nn.ModuleList([layer, copy.deepcopy(layer), _layer(pattern("masked"))])
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    other = copy.deepcopy(net)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    assert _same(net, other)


def test_writing_into_a_state_dict_leaves_the_pattern_alone_and_is_noticed() -> None:
    p = pattern("masked")
    layer = _layer(p)
    right = copy.deepcopy(layer.state_dict())
    layer.state_dict()["mask_index"].zero_()
    assert pickle.loads(pickle.dumps(p)).fingerprint == p.fingerprint
    with pytest.raises(ValueError, match="must be those of the layer's pattern"):
        layer(torch.ones(1, 48))
    layer.load_state_dict(right)
    assert layer.pattern is p


def test_files_of_version_0_1() -> None:
    """Their index arrays are called ``pattern.crow_indices`` and so on, and are left out where they are empty."""
    for name in ("masked", "empty", "ragged"):
        layer, other = _layer(pattern(name)), _layer(pattern(name), seed=1)
        state = layer.state_dict()
        for part in ("crow_indices", "col_indices", "mask_index", "masks"):
            tensor = state.pop(part, torch.empty(0))
            if tensor.numel():
                state[f"pattern.{part}"] = tensor
        assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
        assert _same(layer, other)
        with pytest.raises(ValueError, match="the state dict's pattern must be"):
            _layer(BlockPattern.dense(layer.pattern.shape, (2, 2))).load_state_dict(state)


def test_the_mean_of_state_dicts() -> None:
    """Averages make floating-point numbers of the indices; those of one pattern are its indices still."""
    p = pattern("masked")
    one, two = (_layer(p, seed).state_dict() for seed in (1, 2))
    layer = _layer(p)
    layer.load_state_dict({name: (one[name] + two[name]) / 2 for name in one})
    torch.testing.assert_close(layer.values.detach(), (one["values"] + two["values"]) / 2)
    other = BlockPattern.from_bsr(p.crow_indices, p.col_indices, p.shape, p.block_shape)
    with pytest.raises(ValueError, match=r"must hold integers|the state dict's pattern must be"):
        layer.load_state_dict({name: (one[name] + t) / 2 for name, t in _layer(other).state_dict().items()})


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("strict", [True, False])
def test_another_pattern_is_refused(prefix: str, strict: bool) -> None:
    mine, theirs = (BlockPattern.random((64, 64), (8, 8), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    layer, other = _layer(mine), _layer(theirs, seed=1)
    before = copy.deepcopy(layer.state_dict())
    receiver, giver = (layer, other) if not prefix else (nn.ModuleDict({"net": m}) for m in (layer, other))
    with pytest.raises(ValueError, match="the state dict's pattern must be") as error:
        receiver.load_state_dict(giver.state_dict(), strict=strict)
    name = "net" if prefix else "SparseLinear"
    assert str(error.value) == (
        f"{name}: the state dict's pattern must be {mine.fingerprint}, got {theirs.fingerprint}; "
        "adopt_patterns takes it over"
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


@pytest.mark.parametrize("change", ["blocks", "block_shape", "masks"])
def test_each_difference_of_the_pattern_is_refused(change: str) -> None:
    p = pattern("masked")
    changed = {
        "blocks": lambda: BlockPattern.random(p.shape, p.block_shape, 0.5),
        "block_shape": lambda: BlockPattern.from_mask(p.to_mask(), (4, 4)),
        "masks": lambda: BlockPattern.from_bsr(p.crow_indices, p.col_indices, p.shape, p.block_shape),
    }[change]()
    got = {
        "blocks": rf"{changed.fingerprint}, {changed.nnz_blocks} blocks for {p.nnz_blocks}; adopt_patterns",
        "block_shape": r"one in blocks of \(4, 4\) for \(8, 8\)$",
        "masks": f"{changed.fingerprint}; adopt_patterns",
    }[change]
    with pytest.raises(ValueError, match=f"must be {p.fingerprint}, got {got}"):
        _layer(p).load_state_dict(_layer(changed).state_dict())


def test_a_pattern_of_another_matrix_is_refused() -> None:
    p = BlockPattern.dense((64, 64), (8, 8))
    with pytest.raises(ValueError, match=rf"must be {p.fingerprint}, got none that fits \[64, 64\] \(crow_indices"):
        _layer(p).load_state_dict(_layer(BlockPattern.dense((32, 64), (8, 8))).state_dict())


def test_a_state_without_a_pattern_is_reported_missing() -> None:
    for name in ("square", "masked"):
        layer = _layer(pattern(name))
        arrays = list(dict(layer.named_buffers()))
        state = {key: tensor for key, tensor in layer.state_dict().items() if key not in arrays}
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "crow_indices", "col_indices"'):
            layer.load_state_dict(state)
        assert layer.load_state_dict(state, strict=False).missing_keys == arrays


def test_safetensors_load_a_model_in_which_a_layer_has_two_names(tmp_path: Path) -> None:
    """It names a shared tensor once in the file, and takes the missing keys for those that it left out."""
    layer = _layer(pattern("masked"))
    model = nn.Sequential(layer, nn.ReLU(), layer)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    other = copy.deepcopy(model)
    nn.init.zeros_(other[0].values)
    assert safetensors.torch.load_model(other, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(other[2].values, layer.values)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
def test_loading_into_meta_tensors_brings_no_numbers() -> None:
    one, two = (_layer(BlockPattern.random((64, 48), (8, 8), 0.5, torch.Generator().manual_seed(i))) for i in (1, 2))
    with torch.device("meta"):
        other = es.SparseLinear(48, 64, density=0.5, block_shape=(8, 8))
    other.load_state_dict(one.state_dict())  # torch copies nothing
    other.to_empty(device="cpu").load_state_dict(two.state_dict())
    x = torch.randn(3, 48)
    assert torch.equal(other(x), two(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_what_torch_takes_apart_and_puts_together_again() -> None:
    layer = _layer(pattern("masked"))
    before, x = copy.deepcopy(layer), torch.randn(3, layer.in_features)
    weight_norm(layer, "values")
    torch.testing.assert_close(layer(x), before(x))
    remove_weight_norm(layer, "values")
    prune.l1_unstructured(layer, "values", 0.5)
    layer(x)
    prune.remove(layer, "values")
    assert int((layer.values == 0).sum()) >= layer.values.numel() // 2
    del layer.values
    layer.values = nn.Parameter(before.values.detach())
    assert torch.equal(layer(x), before(x))


@pytest.mark.parametrize("assign", [True, False])
def test_a_layer_without_numbers_takes_the_pattern_of_what_it_loads(assign: bool) -> None:
    layer = _layer(BlockPattern.random((64, 48), (8, 8), 0.5, torch.Generator().manual_seed(1)))
    with torch.device("meta"):
        other = es.SparseLinear(48, 64, density=0.5, block_shape=(8, 8))
        fewer = es.SparseLinear(48, 64, density=0.25, block_shape=(8, 8))
    assert other.pattern != layer.pattern.to("meta")
    if not assign:
        other.to_empty(device="cpu")
        fewer.to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"^SparseLinear: .*, 24 blocks for 12; adopt_patterns takes it over$"):
        fewer.load_state_dict(layer.state_dict(), assign=assign)
    arrays = {key: tensor for key, tensor in layer.state_dict().items() if "indices" in key}
    with pytest.raises(ValueError, match=r"^SparseLinear: the state dict's pattern must be"):  # values may be there
        other.load_state_dict(arrays, strict=False)
    other.load_state_dict({"bias": layer.bias.detach()}, strict=False, assign=assign)  # a part that says nothing of it
    other.load_state_dict(layer.state_dict(), assign=assign)
    with pytest.raises(ValueError, match=r"^SparseLinear: the state dict's pattern must be"):  # it has numbers now
        other.load_state_dict(es.SparseLinear(48, 64, density=0.5, block_shape=(8, 8)).state_dict())
    x = torch.randn(3, 48)
    assert torch.equal(other(x), layer(x))


def test_unknown_keys_are_reported() -> None:
    layer = _layer(pattern("square"))
    state = {**layer.state_dict(), "weight": torch.zeros(2)}
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "weight"'):
        layer.load_state_dict(state)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_into_a_layer_on_meta(assign: bool) -> None:
    layer = _layer(pattern("masked"))
    bare = es.SparseLinear(48, 32, pattern("masked"), device="meta")
    if not assign:
        bare.to_empty(device="cpu")
    bare.load_state_dict(layer.state_dict(), assign=assign)
    assert _same(bare, layer)
    assert torch.equal(bare(torch.ones(1, 48)), layer(torch.ones(1, 48)))


def test_a_whole_layer_pickles() -> None:
    layer = _layer(pattern("masked"))
    assert _same(pickle.loads(pickle.dumps(layer)), layer)

"""What was saved comes back bit by bit, into the storage that is there; safetensors reads our files and we its."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.checkpoint import load_sharded, save_sharded
from efcn_sparse.checkpoint.shard_file import NAME_OF_DTYPE
from efcn_sparse.checkpoint.sharded import INDEX
from tests.table import PATTERNS, pattern


def _layer(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    p = pattern(name)
    return nn.Sequential(es.SparseLinear(p.shape[1], p.shape[0], p), nn.ReLU())


def _check_same(one: nn.Module, other: nn.Module) -> None:
    for (name, tensor), (twin, same) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == twin
        assert torch.equal(tensor, same), name


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern(name: str, tmp_path: Path) -> None:
    one, other = _layer(name, 1), _layer(name, 2)
    save_sharded(one, tmp_path)
    load_sharded(other, tmp_path)
    _check_same(one, other)


def _efcn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    cnn = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
    return es.embed(cnn, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("shard_bytes", [1, 1 << 15, 1 << 40])
def test_shards_of_an_efcn(shard_bytes: int, tmp_path: Path) -> None:
    one, other = _efcn(1), _efcn(2)
    places = {name: tensor.data_ptr() for name, tensor in other.named_parameters()}
    save_sharded(one, tmp_path, shard_bytes=shard_bytes)
    load_sharded(other, tmp_path)
    _check_same(one, other)
    assert {name: tensor.data_ptr() for name, tensor in other.named_parameters()} == places
    told = json.loads((tmp_path / INDEX).read_text())
    state = one.state_dict()
    assert list(told["weight_map"]) == list(state)
    assert told["metadata"] == {"total_size": sum(tensor.nbytes for tensor in state.values())}
    files = sorted(set(told["weight_map"].values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([INDEX, *files])
    for file in files:
        held = safetensors.torch.load_file(tmp_path / file)
        assert set(held) == {name for name in state if told["weight_map"][name] == file}
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= shard_bytes
        assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())


def _strange() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    by_dtype = {f"dtype {dtype}": torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in NAME_OF_DTYPE}
    big = torch.randn((64, 3, 300, 300), generator=generator)  # several pieces
    return by_dtype | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        'ünïcode "name"': torch.arange(3),
        "transposed": big[0, 0].T,
        "channels last": big.to(memory_format=torch.channels_last),
        "strided": torch.arange(24.0).view(4, 6)[:, ::2],
        "expanded": torch.tensor([1.0]).expand(5),
        "part": torch.arange(10)[3:6],
    }


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)  # torch.equal does not know fp8


def test_strange_tensors(tmp_path: Path) -> None:
    state = _strange()
    save_sharded(state, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    held = safetensors.torch.load_file(file)
    assert set(held) == set(state)
    for name, tensor in state.items():
        assert held[name].dtype == tensor.dtype
        assert torch.equal(_bytes(held[name]), _bytes(tensor)), name
    targets = {name: torch.zeros_like(tensor) for name, tensor in state.items() if name != "expanded"}
    targets["expanded"] = torch.zeros(5)
    assert not targets["channels last"].is_contiguous()
    load_sharded(targets, tmp_path)
    for name, tensor in state.items():
        assert torch.equal(_bytes(targets[name]), _bytes(tensor)), name


def test_files_of_others(tmp_path: Path) -> None:
    one, other = _layer("masked", 1), _layer("masked", 2)
    file = "model-00001-of-00001.safetensors"
    safetensors.torch.save_file(one.state_dict(), tmp_path / file, metadata={"format": "pt"})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(one.state_dict(), file)}))
    load_sharded(other, tmp_path)
    _check_same(one, other)
    save_sharded(other, tmp_path)
    assert (tmp_path / file).is_file(), "files that we did not name stay"


def test_a_tensor_with_two_names_is_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        net[2].weight = net[0].weight
        return net

    one, other, untied = tied(), tied(), nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    save_sharded(one, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1.5 * one[0].weight.nbytes
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["shared"] == {"2.weight": "0.weight"}
    for net in (other, untied):
        load_sharded(net, tmp_path)
        _check_same(one, net)


def test_floating_point_numbers_are_converted(tmp_path: Path) -> None:
    one, other = _layer("square", 1), _layer("square", 2).to(torch.bfloat16)
    save_sharded(one, tmp_path)
    load_sharded(other, tmp_path)
    assert torch.equal(other[0].values, one[0].values.to(torch.bfloat16))


def test_autograd_notices(tmp_path: Path) -> None:
    net = nn.Linear(4, 4)
    save_sharded(net, tmp_path)
    y = net(torch.ones(1, 4, requires_grad=True)).sum()
    load_sharded(net, tmp_path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    for seed in range(3):
        save_sharded(_layer("square", seed), tmp_path, shard_bytes=1 << 12)
    other = _layer("square", 7)
    load_sharded(other, tmp_path)
    _check_same(_layer("square", 2), other)
    assert len({path.name.split("-")[1] for path in tmp_path.glob("*.safetensors")}) == 1


def test_checkpoints_of_version_0_1(tmp_path: Path) -> None:
    """Index arrays were called ``pattern.crow_indices`` and so on, and left out where they were empty."""
    for number, name in enumerate(("masked", "empty")):
        one, other, unlike = _layer(name, 1), _layer(name, 2), _layer("square", 3)
        state = one.state_dict()
        for part in ("crow_indices", "col_indices", "mask_index", "masks"):
            array = state.pop(f"0.{part}", torch.empty(0))
            if array.numel():
                state[f"0.pattern.{part}"] = array
        save_sharded(state, tmp_path / str(number))
        load_sharded(other, tmp_path / str(number))
        _check_same(one, other)
        with pytest.raises(ValueError, match="the state dict's pattern must be"):
            load_sharded(unlike, tmp_path / str(number))

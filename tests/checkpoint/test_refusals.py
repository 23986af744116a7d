"""What cannot be saved or loaded is refused by name, and nothing has changed then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.checkpoint import load_sharded, save_sharded
from efcn_sparse.checkpoint.sharded import INDEX
from tests.refused import assert_refused
from tests.table import pattern

NOT_SAVED = {
    "no model": (lambda: 3, TypeError, "model_or_state must be a module or tensors by name, got int"),
    "number": (lambda: {"a": 1}, TypeError, "a must be a tensor, got int"),
    "name": (
        lambda: {1: torch.ones(1)},
        TypeError,
        "model_or_state must have names that are strings, not '__metadata__', got 1",
    ),
    "reserved": (
        lambda: {"__metadata__": torch.ones(1)},
        TypeError,
        "model_or_state must have names that are strings, not '__metadata__', got '__metadata__'",
    ),
    "complex": (
        lambda: {"z": torch.ones(1, dtype=torch.complex64)},
        TypeError,
        "z must have a dtype that safetensors knows, got torch.complex64",
    ),
    "sparse": (
        lambda: {"s": torch.eye(2).to_sparse()},
        TypeError,
        "s must be a plain dense tensor, got Tensor of torch.sparse_coo",
    ),
    "meta": (
        lambda: nn.Linear(2, 2, device="meta"),
        ValueError,
        "weight must have memory, got a tensor on the meta device; see Module.to_empty",
    ),
}


@pytest.mark.parametrize("case", NOT_SAVED)
def test_not_saved(case: str, tmp_path: Path) -> None:
    make, kind, message = NOT_SAVED[case]
    assert_refused(save_sharded, kind, message, make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("shard_bytes", [0, -1, 1.5, True, "5GB"])
def test_shard_bytes(shard_bytes: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_bytes must be an integer of at least 1, got "):
        save_sharded(nn.Linear(2, 2), tmp_path / "new", shard_bytes=shard_bytes)
    assert not (tmp_path / "new").exists()


def _net(seed: int = 0, name: str = "square") -> nn.Module:
    torch.manual_seed(seed)
    p = pattern(name)
    return nn.ModuleDict({"a": es.SparseLinear(p.shape[1], p.shape[0], p), "b": nn.Linear(3, 2)})


def _edit_index(folder: Path, edit: Callable[[dict], object]) -> None:
    told = json.loads((folder / INDEX).read_text())
    edit(told)
    (folder / INDEX).write_text(json.dumps(told))


def _shard(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def _cut(folder: Path, size: int) -> None:
    with _shard(folder).open("r+b") as file:
        file.truncate(size)


def _overwrite(folder: Path, at: int, what: bytes) -> None:
    with _shard(folder).open("r+b") as file:
        file.seek(at)
        file.write(what)


def _state(change: dict[str, torch.Tensor | None]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        state = _net(1).state_dict() | change
        save_sharded({name: tensor for name, tensor in state.items() if tensor is not None}, folder)

    return save


_MISMATCH = "the checkpoint in {folder} must hold the tensors of the model, got "
NOT_LOADED = {
    "missing": (_state({"b.bias": None}), _MISMATCH + "missing ['b.bias'] and unexpected []"),
    "unexpected": (_state({"c": torch.ones(1)}), _MISMATCH + "missing [] and unexpected ['c']"),
    "no pattern": (
        _state({"a.crow_indices": None, "a.col_indices": None}),
        _MISMATCH + "missing ['a.crow_indices', 'a.col_indices'] and unexpected []",
    ),
    "many": (
        _state({f"c{i}": torch.ones(1) for i in range(10)}),
        _MISMATCH + "missing [] and unexpected ['c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7'] and 2 more",
    ),
    "shape": (_state({"b.weight": torch.ones(2, 4)}), "b.weight must be [2, 3], got [2, 4] in the checkpoint"),
    "dtype": (
        _state({"b.weight": torch.ones(2, 3, dtype=torch.int64)}),
        "b.weight must be torch.float32, got torch.int64 in the checkpoint",
    ),
    "pattern": (
        lambda folder: save_sharded(_net(1, "mid-blocks"), folder),
        "a: the state dict's pattern must be {fingerprint}, got none that fits [64, 48] "
        "(crow_indices must be [3], got [5])",
    ),
    "index": (
        lambda folder: (folder / INDEX).write_text("{}"),
        "{folder}/model.safetensors.index.json must be the index of a checkpoint in shards, "
        "got KeyError('weight_map') from it",
    ),
    "outside": (
        lambda folder: _edit_index(folder, lambda told: told["weight_map"].update({"b.bias": "../x"})),
        "{folder}/model.safetensors.index.json must name files of its own folder, got '../x'",
    ),
    "shared": (
        lambda folder: _edit_index(folder, lambda told: told["metadata"].update(shared={"b.bias": "nope"})),
        "{folder}/model.safetensors.index.json must name each shared tensor's stored one, got 'b.bias' for 'nope'",
    ),
    "no shard": (
        lambda folder: _shard(folder).unlink(),
        "{folder}/model.safetensors.index.json must name files that are there, got {shard} missing",
    ),
    "not in its shard": (
        lambda folder: _edit_index(folder, lambda told: told["weight_map"].update(c=_shard(folder).name)),
        "{folder}/{shard} must hold 'c', as model.safetensors.index.json says, got a file without it",
    ),
    "cut": (
        lambda folder: _cut(folder, _shard(folder).stat().st_size - 1),
        "{folder}/{shard} must be a whole safetensors file of {size} bytes, got {less}",
    ),
    "cut in the header": (
        lambda folder: _cut(folder, 20),
        "{folder}/{shard} must be a whole safetensors file, got 20 bytes that end in its header",
    ),
    "empty": (
        lambda folder: _cut(folder, 0),
        "{folder}/{shard} must be a whole safetensors file, got 0 bytes that end in its header",
    ),
    "no JSON": (
        lambda folder: _overwrite(folder, 8, b"x"),
        "the header of {folder}/{shard} must hold a JSON object, got text that is none: ",
    ),
    "offsets": (
        lambda folder: _overwrite(folder, _shard(folder).read_bytes().index(b'offsets":[0,') + 10, b"1"),
        "the header of {folder}/{shard} must have data_offsets ",
    ),
    "deep": (
        lambda folder: (folder / INDEX).write_text("[" * 100_000),
        "{folder}/model.safetensors.index.json must hold a JSON object, got one that is nested too deeply",
    ),
    "size": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": {}, "metadata": {"total_size": 1e999}}'),
        "{folder}/model.safetensors.index.json must be the index of a checkpoint in shards, got OverflowError",
    ),
}


@pytest.mark.parametrize("case", NOT_LOADED)
def test_not_loaded(case: str, tmp_path: Path) -> None:
    spoil, message = NOT_LOADED[case]
    save_sharded(_net(1), tmp_path)
    shard, size = _shard(tmp_path).name, _shard(tmp_path).stat().st_size
    spoil(tmp_path)
    net = _net(2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        load_sharded(net, tmp_path)
    facts = dict(folder=tmp_path, shard=shard, size=size, less=size - 1, fingerprint=pattern("square").fingerprint)
    assert str(caught.value).startswith(message.format(**facts))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_both_fingerprints_are_told(tmp_path: Path) -> None:
    shape, block = (64, 48), (16, 16)
    saved = es.BlockPattern.random(shape, block, 0.5, torch.Generator().manual_seed(5))
    save_sharded(es.SparseLinear(48, 64, saved), tmp_path)
    p = pattern("square")
    assert saved != p
    with pytest.raises(ValueError, match="SparseLinear: ") as caught:
        load_sharded(es.SparseLinear(48, 64, p), tmp_path)
    expected = f"SparseLinear: the state dict's pattern must be {p.fingerprint}, got {saved.fingerprint}"
    assert str(caught.value).startswith(expected)


def test_no_checkpoint(tmp_path: Path) -> None:
    message = f"folder must hold model.safetensors.index.json, got {tmp_path} without one"
    assert_refused(load_sharded, FileNotFoundError, message, nn.Linear(2, 2), tmp_path)


def test_a_model_without_memory(tmp_path: Path) -> None:
    save_sharded(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="weight must have memory, got a tensor on the meta device"):
        load_sharded(nn.Linear(2, 2, device="meta"), tmp_path)

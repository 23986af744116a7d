"""Damaged files end in the documented errors, in one line that names the file, and change nothing.

A seeded sample here; many more by ``EFCN_FUZZ=100000 pytest tests/checkpoint/test_fuzz.py``.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint, stored_block_shapes
from efcn_sparse.training.run.metrics import LAYERS, METRICS, read_evaluations
from efcn_sparse.training.run.run_directory import read_config

COUNT = int(os.environ.get("EFCN_FUZZ", "300"))
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e300, 10**30, 2**63, float("inf"), float("nan"), "", "F32", "\0", "optimizer/0/a/b",
    [], [[]], [1, 2], [2**62, 0], {}, {"a": 1},
)  # fmt: skip


def _spoilt_json(told: Any, chance: random.Random) -> Any:
    """``told`` with one value, or one name, replaced by something odd."""
    places = list(_places(told))
    holder, key = chance.choice(places)
    if isinstance(holder, dict) and chance.random() < 0.3:
        names = ("optimizer/0", "optimizer/a/b", "optimizer/0/a/b", "optimizer/-1/a", "x.pattern.masks", "", key + "x")
        holder[chance.choice(names)] = holder.pop(key)
    else:
        holder[key] = chance.choice(ODD)
    return told


def _places(told: Any) -> Any:
    for key, value in told.items() if isinstance(told, dict) else enumerate(told):
        yield told, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    pattern = es.BlockPattern.from_mask(torch.rand(16, 64) < 0.1, (4, 4))  # blocks with masks
    net = nn.Sequential(es.SparseLinear(64, 16, pattern), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(3, 64)).sum().backward()
    optimizer.step()
    return net, optimizer


def _refused(call: Callable[[], object], path: Path) -> bool:
    told = ""
    try:
        call()
    except (ValueError, TypeError) as error:
        told = str(error)
    assert not told or (str(path) in told and "\n" not in told), told
    return bool(told)


def test_spoilt_headers_of_checkpoints(tmp_path: Path) -> None:
    net, optimizer = _net()
    path, chance, refused = tmp_path / "net.safetensors", random.Random(0), 0
    save_checkpoint(path, net, optimizer)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    fresh, other = _net()
    before = [tensor.clone() for tensor in fresh.state_dict().values()]
    for _ in range(COUNT):
        header = json.dumps(_spoilt_json(json.loads(whole[8 : 8 + length]), chance)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
        if _refused(lambda: load_checkpoint(path, fresh, other), path):
            refused += 1
            assert all(map(torch.equal, fresh.state_dict().values(), before))
        _refused(lambda: stored_block_shapes(path), path)
    assert refused > COUNT / 2


def test_spoilt_bytes_of_a_run(tmp_path: Path) -> None:
    chance, refused = random.Random(1), 0
    config = es.training.RelaxConfig.from_preset("digits")  # type: ignore[attr-defined]
    row = "elcn,0,1,2,0.1,0.5,0.6,0.7,0.8,0.0,4.0,0.0,0.0,36,,,1.0\n"
    files = {
        "config.json": config.to_json(), "metrics.csv": ",".join(METRICS) + "\n" + row * 5,
        "layers.csv": ",".join(LAYERS) + "\n" + "elcn,0,1,2,conv1,0.5,3.0,0.0,1.5,36,0.25,0.75\n" * 5,
    }  # fmt: skip
    for number in range(COUNT):
        name = chance.choice(list(files))
        text, path = bytearray(files[name].encode()), tmp_path / name
        if name == "config.json" and number % 2:
            text = bytearray(json.dumps(_spoilt_json(json.loads(text), chance)).encode())
        else:
            at = chance.randrange(len(text))
            text[at : at + chance.choice((0, 1, 5))] = chance.choice(
                (b"\0", b"\xff", b'"', b",", b"\n", b"-", b"9" * 30, b"[" * 20_000, b"1" * 200_000, b"")
            )
        path.write_bytes(text)
        if name == "config.json":
            refused += _refused(lambda: read_config(tmp_path), path)
        else:
            columns = METRICS if name == "metrics.csv" else LAYERS
            refused += _refused(lambda path=path, columns=columns: read_evaluations(path, columns), path)  # type: ignore[misc]
    assert refused > COUNT / 5


@pytest.mark.parametrize("name", ["crow_indices", "pattern.crow_indices", "masks", "values"])
def test_a_string_in_the_place_of_a_tensor_is_refused(name: str) -> None:
    net, _ = _net()
    state: dict[str, Any] = net.state_dict()
    if name.startswith("pattern."):  # as version 0.1 had it
        arrays = [key for key in state if key.startswith("0.") and not state[key].is_floating_point()]
        state |= {key.replace("0.", "0.pattern."): state.pop(key) for key in arrays}
    state[f"0.{name}"] = "0 1 2"
    with pytest.raises(
        (ValueError, RuntimeError), match=r"crow_indices.* got str|masks.* got str|expected torch\.Tensor"
    ):
        net.load_state_dict(state)

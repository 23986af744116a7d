"""Measured rates are kept for the machine, the threads and the versions that they are of, and for no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from efcn_sparse.embedding import Grown, Local, plan
from efcn_sparse.measure.rates_file import identity, load_rates, rates_path, save_rates
from efcn_sparse.measure.step_rates import measure_rates
from efcn_sparse.planning.duration import Rates
from efcn_sparse.planning.probe import Probe

_RATES = Rates({"a": {"forward": 2.0, "dx": 3.0, "dw": 4.0}}, 5.0, 6.0, 7.0, 8.0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rates.json"
    assert load_rates(path).reason == f"there is no {path}"
    assert save_rates(_RATES, path) == path
    kept = load_rates(path)
    assert (kept.rates, kept.reason) == (_RATES, "")
    assert kept.date[:2] == "20"
    save_rates(Rates({}, 1.0, 1.0, 1.0, 1.0), path)
    assert load_rates(path).rates == Rates({}, 1.0, 1.0, 1.0, 1.0)
    assert [entry.name for entry in path.parent.iterdir()] == ["rates.json"]


@pytest.mark.parametrize("name", ["processor", "threads", "kernels", "torch", "efcn_sparse"])
def test_foreign_rates_are_ignored_with_the_reason(name: str, tmp_path: Path) -> None:
    path = save_rates(_RATES, tmp_path / "rates.json")
    told = json.loads(path.read_text())
    told["identity"][name] = "another"
    path.write_text(json.dumps(told))
    kept = load_rates(path)
    assert (kept.rates, kept.date) == (None, "")
    assert kept.reason == f"{path} is of other {name}: another, here {identity()[name]}"


DAMAGED = {
    "not JSON": ("{", "cannot be read"),
    "binary": (b"\xff\xfe\x00", "cannot be read"),
    "a list": ("[]", "is of another format"),
    "a later format": ('{"format": 2, "identity": {}}', "is of another format"),
    "no rates": ({"rates": None}, "is damaged"),
    "a negative rate": ({"rates": {"dense": -1}}, "is damaged"),
    "no date": ({"date": ...}, "is damaged"),
    "words": ({"rates": {"products": {"a": {"dw": "fast"}}}}, "is damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_ignored_with_the_reason(name: str, tmp_path: Path) -> None:
    what, reason = DAMAGED[name]
    path = save_rates(_RATES, tmp_path / "rates.json")
    if isinstance(what, dict):
        told = json.loads(path.read_text())
        for key, value in what.items():
            if value is ...:
                del told[key]
            else:
                told[key] = {**told[key], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(told))
    else:
        path.write_bytes(what if isinstance(what, bytes) else what.encode())
    kept = load_rates(path)
    assert kept.rates is None
    assert kept.reason.startswith(f"{path} {reason}")
    assert "\n" not in kept.reason


def test_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"rates-threads{torch.get_num_threads()}.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rates_path() == tmp_path / "efcn_sparse" / name
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rates_path() == tmp_path / ".cache" / "efcn_sparse" / name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measured(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from efcn_sparse.measure import step_rates
    from efcn_sparse.measure.shapes import RooflineShapes

    monkeypatch.setattr(step_rates, "_SECONDS", 0.0)
    monkeypatch.setattr(step_rates, "_ROOFLINE", RooflineShapes(gemm_size=64, array_mb=1, rounds=1))
    conv = nn.Conv2d(8, 8, 3, padding=1).to(dtype)
    example = torch.empty(1, 8, 6, 6, dtype=dtype)
    probes = [Probe.of(plan(conv, example, support=support).layers[0], 4) for support in (Local(), Grown(2))]
    rates = measure_rates(probes, {"known": {"forward": 1.0}})
    assert set(rates.products) == {"known", *(probe.key for probe in probes)}
    for probe in probes:
        assert set(rates.products[probe.key]) == {"forward", "dx", "dw"}
        assert all(1e3 < rate < 1e15 for rate in rates.products[probe.key].values())
    assert min(rates.dense, rates.bandwidth, rates.first_touch) > 1e6
    assert 1e-8 < rates.call < 1e-2

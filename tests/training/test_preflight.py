"""A run that cannot fit is refused before anything of it exists, with the figures and the nearest that fits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from efcn_sparse import available
from efcn_sparse.cli.main import main
from efcn_sparse.models import vanilla_cnn
from efcn_sparse.planning import predict_step
from efcn_sparse.sizes import size_text
from efcn_sparse.training import RelaxConfig, run_relax
from efcn_sparse.training.arms import Arm
from efcn_sparse.training.run.preflight import BUDGET, Needs, Net, check_fits
from efcn_sparse.training.run.source import preset_task

_ARMS = ("cnn", "fcn", "elcn", "efcn-dilated2", "efcn-grown1.5", "efcn-full")


def _config(**changes: object) -> RelaxConfig:
    return RelaxConfig(preset="vanilla-cifar10", **{"arms": _ARMS, "test_limit": 250, "train_limit": 1000, **changes})  # type: ignore[arg-type]


def needed_bytes(config: RelaxConfig) -> dict[str, int]:
    """What each arm needs at least."""
    needs = Needs(config, preset_task(config))
    return {arm: needs(Net(Arm.parse(arm), config.batch_size, config.fused)) for arm in config.arms}


@pytest.mark.parametrize(("arm", "momentum", "fused"), [("elcn", 0.0, True), ("efcn-grown1.5", 0.9, False)])
def test_a_large_batch_needs_what_its_step_does(arm: str, momentum: float, fused: bool) -> None:
    config = _config(arms=("cnn", arm), batch_size=900, train_limit=900, momentum=momentum, fused=fused, test_limit=9)
    with torch.device("meta"):
        step = predict_step(
            vanilla_cnn(), torch.empty(900, 3, 32, 32), support=Arm.parse(arm).support,  # type: ignore[arg-type]
            optimizer="momentum" if momentum else "sgd", fused=fused,
        )  # fmt: skip
    needed = needed_bytes(config)
    assert step.peak <= needed[arm] <= 1.25 * step.peak  # its evaluation, while gradients are held, may need more
    most = max(needed.values())  # a fused twin may need less than the CNN, which holds more between its layers
    check_fits(config, most)
    assert _refusal(config, most - 1)[1] == max(needed, key=needed.__getitem__)


def test_more_of_anything_needs_more() -> None:
    needed = needed_bytes(_config())
    assert needed["fcn"] == needed["efcn-full"]
    order = [needed[arm] for arm in ("cnn", "elcn", "efcn-grown1.5", "efcn-dilated2", "efcn-full")]
    assert order == sorted(set(order))
    full = _config(arms=("fcn",))
    assert needed_bytes(dataclasses.replace(full, momentum=0.9))["fcn"] > needed["fcn"]
    assert needed_bytes(dataclasses.replace(full, fused=True))["fcn"] < needed["fcn"]
    large = needed_bytes(dataclasses.replace(full, batch_size=1000))
    assert large["fcn"] >= needed["fcn"]
    assert needed_bytes(dataclasses.replace(full, batch_size=5000)) == large  # there are no more images
    assert needed_bytes(dataclasses.replace(full, test_limit=None))["fcn"] > needed["fcn"]  # read 2000 at a time


_NEED = (
    r"arms must fit into memory, got ([\w.-]+) at batch (\d+)(, fused)?, "
    r"which needs (.*?) of the (.*?) that are available; "
)


def _refusal(config: RelaxConfig, budget: int) -> re.Match[str]:
    with pytest.raises(ValueError, match=r"^arms must fit into memory, got ") as caught:
        check_fits(config, budget)
    found = re.match(_NEED, str(caught.value))
    assert found is not None, caught.value
    assert found[5] == size_text(budget)
    return found


@pytest.mark.parametrize(
    ("arm", "share", "offered"),
    [
        ("efcn-full", 0.9, r"efcn-full at batch 250, fused \((.+?)\), or efcn-dilated\d+ at batch 250 \((.+?)\) \("),
        (
            "efcn-dilated2",
            0.98,
            r"efcn-dilated2 at batch 250, fused \((.+?)\), or efcn-dilated1 at batch 250 \((.+?)\) \(",
        ),
        ("fcn", 0.7, r"fcn at batch 250, fused \((.+?)\) \("),
    ],
    ids=["full", "dilated", "fcn"],
)
def test_the_nearest_that_fits_does(arm: str, share: float, offered: str) -> None:
    config = _config(arms=("fcn",) if arm == "fcn" else ("cnn", arm))
    budget = int(share * needed_bytes(config)[arm])
    refused = _refusal(config, budget)
    assert refused[1] == arm
    said = refused.string[refused.end() :]
    found = re.match("what fits is " + offered, said)
    assert found is not None, said
    for near, batch, fused, size in re.findall(r"([\w.-]+) at batch (\d+)(, fused)? \((.*?)\)", said):
        there = _config(arms=("fcn",) if near == "fcn" else ("cnn", near), batch_size=int(batch), fused=bool(fused))
        assert size_text(needed_bytes(there)[near]) == size
        check_fits(there, budget)


def test_a_smaller_batch_is_the_largest_that_fits() -> None:
    config = _config(arms=("cnn", "elcn"), batch_size=1000, fused=True)
    budget = needed_bytes(_config(arms=("cnn", "elcn"), batch_size=700, fused=True))["elcn"]
    said = _refusal(config, budget).string
    found = re.search(r"what fits is (\w+) at batch (\d+)", said)
    assert found is not None, said
    near = dataclasses.replace(config, arms=("cnn",) if found[1] == "cnn" else config.arms, batch_size=int(found[2]))
    assert (
        needed_bytes(near)[found[1]]
        <= budget
        < needed_bytes(dataclasses.replace(near, batch_size=near.batch_size + 1))[found[1]]
    )


def test_the_least_of_an_arm() -> None:
    assert "; the least of this arm is cnn at batch 1 (" in _refusal(_config(batch_size=1), 1000).string
    assert "; the least of this arm is cnn at batch 1 (" in _refusal(_config(), 1000).string


def test_refused_before_anything_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(available, "available_bytes", lambda device: 1 << 20)
    assert main(["relax", "--preset", "digits", "--run-dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("efcn-sparse: error: --arms must fit into memory, got cnn at batch 50, which needs ")
    assert told.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_budget_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RelaxConfig.from_preset(
        "digits", seeds=(0,), arms=("cnn",), cnn_epochs=0, snapshots=1, train_limit=20, test_limit=20
    )
    monkeypatch.setattr(available, "available_bytes", lambda device: 1)
    monkeypatch.setenv(BUDGET, "64KiB")
    with pytest.raises(ValueError, match=r"^arms must fit into memory, .* of the 64\.0 KiB that are available; "):
        run_relax(config, tmp_path / "run", quiet=True)
    monkeypatch.setenv(BUDGET, "much")
    with pytest.raises(ValueError, match=f"^{BUDGET} must be a size such as 100GiB or 512MB, got 'much'$"):
        check_fits(config)
    monkeypatch.setenv(BUDGET, "1GiB")
    check_fits(config)
    monkeypatch.setenv(BUDGET, "none")
    assert run_relax(config, tmp_path / "run", quiet=True).is_dir()


def test_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "available_bytes", lambda device: None)
    check_fits(_config())


def test_selective_runs_are_not_told_to_fuse() -> None:
    config = _config(arms=("cnn", "efcn-full"), relaxing="sharing")
    budget = int(0.9 * needed_bytes(config)["efcn-full"])
    said = _refusal(config, budget).string
    assert "fused" not in said
    assert re.search(r"efcn-dilated\d+ at batch 250 \(", said)


@pytest.mark.parametrize(
    ("momentum", "fused", "copies"), [(0.0, False, 2), (0.9, False, 3), (0.0, True, 1), (0.9, True, 3)]
)
def test_blocks_that_move_hold_their_layer_once_more(momentum: float, fused: bool, copies: int) -> None:
    """With one image, what a step needs beside the weights is little, and moving the largest layer is the most."""
    arm = "efcn-grown2"
    config = _config(arms=("cnn", arm), batch_size=1, train_limit=1, test_limit=1, momentum=momentum, fused=fused)
    with torch.device("meta"):
        step = predict_step(
            vanilla_cnn(), torch.empty(1, 3, 32, 32), support=Arm.parse(arm).support,  # type: ignore[arg-type]
            optimizer="momentum" if momentum else "sgd", fused=fused,
        )  # fmt: skip
    largest = 2 * 1156 * 64 * 64 * 4
    held = step.inputs + step.weights + step.structure + step.optimizer + step.gradients
    assert needed_bytes(config)[arm] == max(held + copies * largest, step.peak)
    _refusal(config, held + copies * largest - 1)

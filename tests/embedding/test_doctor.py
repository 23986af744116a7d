"""``efcn-sparse doctor`` prints what embedding would store, and refuses in one line."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from efcn_sparse.cli.main import main
from efcn_sparse.measure import layers


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "vanilla"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[2]) == [
        "0", "3×32×32", "64×17×17", "18,496×3,072", "local", "64×6", "2,048", "786,432", "786,432", "1.38%", "3.0 MiB"
    ]  # fmt: skip
    assert re.split(r"\s{2,}", lines[-1]) == ["total", "3,253", "5,722,112", "5,722,112", "7.74%", "21.8 MiB"]
    assert len({len(line) for line in lines[2:5]}) == 1


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", "resnet18", "--input", "3,224,224", "--support", "dilated1", "--skip", "*downsample*"]
    assert main([*arguments, "--dtype", "bfloat16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["layers"]) == 17
    assert {layer["support"] for layer in told["layers"]} == {"dilated1"}
    assert told["total"]["bytes"] == 2 * told["total"]["stored_weights"]
    assert told["total"]["local_weights"] == 1_679_878_912 - sum((1568, 1568, 1568)) * 64 * 64


def test_a_model_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynet.py").write_text("import torch\ndef net():\n    return torch.nn.Conv1d(2, 4, 3)\n")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "mynet:net", "--input", "2,8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["local_weights"] == 6 * 3 * 2 * 4


def test_step_and_budget(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", "vanilla", "--batch", "250", "--optimizer", "adamw", "--fused", "--budget", "480MiB"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a training step of local at batch 250 with adamw, fused" in lines
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert ["optimizer", "43.8 MiB", "its state"] in cells
    assert ["workspace", "8.0 MiB", "of fused updates"] in cells
    assert [row[0] for row in cells if row[-1] == "fits"] == ["local", "dilated9"]
    assert [row[0] for row in cells if row[-1] == "does not fit"] == ["dilated10", "full"]
    assert lines[-1] == "the largest radius of dilated that fits is 9"
    assert main([*arguments, "--support", "full", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"]["batch"], told["step"]["optimizer"], told["step"]["fused"]) == (250, "adamw", True)
    assert told["step"]["predicted"]["peak"] == told["budget"]["peaks"]["full"] > told["budget"]["budget"]
    assert (told["budget"]["fits"], told["budget"]["largest_radius"]) == (False, 9)


def test_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when asked for, layer by layer; what does not fit into memory is refused by name."""
    monkeypatch.setattr(layers, "_SECONDS", 0.0)
    assert main(["doctor", "vanilla", "--batch", "4"]) == 0
    assert "timed on" not in capsys.readouterr().out
    assert main(["doctor", "vanilla", "--batch", "4", "--measure"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].strip()
    assert re.fullmatch(r"time\s+[\d.]+ ms  forward and backward of the sparse layers, timed on \d+ threads?", last)
    assert main(["doctor", "vanilla", "--batch", "4", "--measure", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["step"]["measured"]
    assert told["threads"] == torch.get_num_threads()
    assert list(told["layers"]) == ["0", "3", "6"]
    assert told["seconds"] == pytest.approx(sum(told["layers"].values()))
    assert min(told["layers"].values()) > 0
    monkeypatch.setattr(layers, "available_bytes", lambda: 8 << 20)
    assert main(["doctor", "vanilla", "--batch", "4", "--measure"]) == 2
    assert (
        "--measure needs 36.4 MiB for the layer '3' at batch 4, got 8.0 MiB of memory left" in capsys.readouterr().err
    )


def test_supports(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", "vanilla", "--supports", "local", "dilated2", "full", "grown2"]
    assert main(arguments) == 0
    rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert rows[-7] == ["layer", "local", "memory", "dilated2", "memory", "full", "memory", "grown2", "memory"]
    assert rows[-5][:7] == ["0", "786,432", "3.0 MiB", "2,952,192", "11.3 MiB", "56,819,712", "216.8 MiB"]
    assert rows[-1][:7] == ["total", "5,722,112", "21.8 MiB", "14,359,552", "54.8 MiB", "73,928,704", "282.0 MiB"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for layer in told["layers"]:
        for number in ("stored_blocks", "stored_weights", "bytes"):
            assert layer["supports"]["local"][number] == layer[number]
        assert layer["supports"]["full"]["stored_weights"] == layer["full_weights"]
    for name, total in told["total"]["supports"].items():
        held = sum(layer["supports"][name]["bytes"] for layer in told["layers"])
        assert total["bytes"] == held == 4 * total["stored_weights"]


@pytest.mark.parametrize("name", ["density.png", "density.SVG"])
def test_picture(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    assert main(["doctor", "vanilla", "--support", "dilated1", "--picture", str(path)]) == 0
    drawn = path.read_bytes()
    assert drawn.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert main(["doctor", "vanilla", "--support", "dilated1", "--picture", str(path)]) == 0
    assert path.read_bytes() == drawn


def test_a_picture_needs_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["doctor", "vanilla", "--picture", str(tmp_path / "density.png")]) == 2
    told = capsys.readouterr()
    assert told.err == (
        "efcn-sparse: error: --picture needs matplotlib, which is not installed: pip install 'efcn-sparse[plot]'\n"
    )
    assert not list(tmp_path.iterdir())


_OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.idle = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    def forward(self, batch, scale=1.0, *, names=("logits",)):
        return {name: self.conv(batch["pixels"]) * scale for name in names}

def alone(): return Net()
def positional(): return Net(), ({"pixels": torch.empty(1, 3, 8, 8)}, 2.0)
def keywords(): return Net(), {"batch": {"pixels": torch.empty(1, 3, 8, 8)}, "names": ["logits"]}
def both(): return Net(), ({"pixels": torch.empty(1, 3, 8, 8)},), {"names": ["logits"]}
def not_named(): return Net(), (torch.empty(1, 3, 8, 8),), 2.0
def state(): return Net().state_dict()
def one_input(): return nn.Conv2d(3, 8, 3), torch.empty(1, 3, 8, 8)
def big(): return nn.Conv2d(64, 64, 3, padding=1), torch.empty(1, 64, 64, 64)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(_OWN)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("function", ["positional", "keywords", "both"])
def test_a_model_with_its_own_inputs(function: str, own: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Dicts, keywords and what is no tensor; the batch is the first side of the tensors in them."""
    peaks = {}
    for name in (function, "one_input"):
        options = ["--leave-uncalled"] if name == function else []
        assert main(["doctor", f"{own}:{name}", "--batch", "16", "--json", *options]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["total"]["local_weights"] == 36 * 9 * 3 * 8
        peaks[name] = told["step"]["predicted"]
    assert peaks[function]["inputs"] == peaks["one_input"]["inputs"] == 16 * 3 * 64 * 4
    assert peaks[function]["flops"] == peaks["one_input"]["flops"]
    idle = 4 * (8 * 27 + 8)  # is kept, and not embedded
    assert peaks[function]["weights"] == peaks["one_input"]["weights"] + idle


def test_what_does_not_fit_into_memory_is_said_at_once(
    own: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["efcn_sparse.embedding.plan"], "available_bytes", lambda device: 2 << 30)
    assert main(["doctor", f"{own}:big", "--support", "full"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "embed would refuse this here: support must fit into the 2.0 GiB of memory available on cpu, got Full(), whose "
        "weights alone take 256.0 GiB; what fits is Dilated(radius=1), 1.5 GiB"
    )
    assert main(["doctor", f"{own}:big"]) == 0
    assert "refuse" not in capsys.readouterr().out


def broken() -> torch.nn.Module:
    raise RuntimeError("no weights here")


def normalized() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2))


class FailsInTraining(torch.nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("no loss without targets")
        return super().forward(x)


def fails_in_training() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), FailsInTraining(4, 2, 3))


OWN_REFUSED = {
    "alone": (
        ["--input", "3,8,8", "--leave-uncalled"],
        r"\S+:alone must run on an input of \[1, 3, 8, 8\], got IndexError: .*; for other inputs let it return "
        r"\(model, inputs\), with inputs a tensor, a tuple, or a dict of keyword arguments, or \(model, tuple, dict\)",
    ),
    "keywords": ([], r"cannot embed 'idle' \(Conv2d\): the example run does not call it; --skip 'idle' leaves it as it "
                 r"is, and --leave-uncalled every such one"),
    "positional": (["--input", "3,8,8"], r"--input must be left out where MODEL returns its inputs too, got '3,8,8'"),
    "not_named": ([], r"MODEL must return keyword arguments as a dict, got float from '\S+:not_named'"),
    "state": ([], r"MODEL must return an nn.Module, got OrderedDict from '\S+:state'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("function", OWN_REFUSED)
def test_refusals_in_the_words_of_the_command_line(function: str, own: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = OWN_REFUSED[function]
    assert main(["doctor", f"{own}:{function}", *options]) == 2
    assert re.fullmatch(f"efcn-sparse: error: {message}\n", capsys.readouterr().err)


REFUSED = {
    "batch": (["vanilla", "--batch", "0"], "--batch must be an integer of at least 1, got '0'"),
    "no batch": (["vanilla", "--budget", "1GiB"], "--batch must be given with --budget, such as --batch 250"),
    "fused without batch": (["vanilla", "--fused"], "--batch must be given with --fused, such as --batch 250"),
    "measure without batch": (
        ["vanilla", "--measure"], "--batch must be given with --measure, such as --batch 250"),
    "picture": (
        ["vanilla", "--picture", "density.gif"],
        "--picture must be a file that ends in .png or .svg, got 'density.gif'",
    ),
    "picture in no folder": (
        ["vanilla", "--picture", "no/such/density.png"],
        "--picture must be in a folder that exists, got 'no/such/density.png'",
    ),
    "supports": (["vanilla", "--supports", "local", "big"], "--supports must be local, full, dilated<radius> such as "),
    "no supports": (["vanilla", "--supports"], "argument --supports: expected at least one argument"),
    "optimizer": (
        ["vanilla", "--batch", "8", "--optimizer", "lion"],
        "--optimizer must be one of sgd, sgd-inside, momentum, adamw, got 'lion'",
    ),
    "budget": (
        ["vanilla", "--batch", "8", "--budget", "lots"],
        "--budget must be a size such as 100GiB or 512MB, got 'lots'",
    ),
    "small budget": (
        ["vanilla", "--batch", "250", "--budget", "50MiB"],
        "--budget must hold local at batch 250 with sgd, ",
    ),
    "name": (
        ["nope"],
        "MODEL must be one of vanilla, alexnet, resnet18, resnet50 or package.module:function, got 'nope'",
    ),
    "no input": (
        ["torch.nn:Identity"], "--input must be given for a model of your own, such as --input 3,224,224"),
    "input": (["vanilla", "--input", "3,x"], "--input must be integers of at least 1 with commas between, got '3,x'"),
    "small input": (["vanilla", "--input", "3,4,4"], "vanilla must run on an input of [1, 3, 4, 4], got "),
    "support": (
        ["vanilla", "--support", "big"],
        "--support must be local, full, dilated<radius> such as dilated2, grown<budget> such as grown1.5, or "
        "lowrank<rank>, got 'big'",
    ),
    "small number of a support": (
        ["vanilla", "--support", "grown0.5"],
        "--support must have a budget that is a number of at least 1, got 'grown0.5'"),
    "small number of another support": (
        ["vanilla", "--supports", "full", "lowrank0"],
        "--supports must have a rank that is an integer of at least 1, got 'lowrank0'"),
    "value error of a model": (
        ["tests.embedding.test_doctor:normalized", "--input", "1,10"],
        "tests.embedding.test_doctor:normalized must run on an input of [1, 1, 10], got ValueError: expected 4D input"),
    "training": (
        ["tests.embedding.test_doctor:fails_in_training", "--input", "3,8,8", "--skip", "1", "--batch", "4"],
        "tests.embedding.test_doctor:fails_in_training must run on an input of [4, 3, 8, 8] in training mode, got Ru"),
    "dtype": (["vanilla", "--dtype", "int8"], "--dtype must be a floating-point dtype of torch, got 'int8'"),
    "skip": (["vanilla", "--skip", "9"], "--skip must name convolutions of the model, ['0', '3', '6'], got ['9']"),
    "import": (
        ["no_such_module:net", "--input", "3,4,4"],
        "MODEL must name something that can be imported, got 'no_such_module:net': No module named 'no_such_module'",
    ),
    "not callable": (["torch:__version__.major", "--input", "3,4,4"], "MODEL must name "),
    "fails": (["json:dumps", "--input", "3,4,4"], "MODEL must be callable without arguments, got "),
    "raises": (
        ["tests.embedding.test_doctor:broken", "--input", "3,4,4"],
        "MODEL tests.embedding.test_doctor:broken must make a model, and raised RuntimeError: no weights here",
    ),
    "no module": (["builtins:dict", "--input", "3,4,4"], "MODEL must return an nn.Module, got dict from "),
    "nothing to embed": (
        ["torch.nn:Identity", "--input", "3,4,4"],
        "MODEL must hold a convolution to embed such as an nn.Conv2d, got Identity without one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = REFUSED[name]
    assert main(["doctor", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"efcn-sparse: error: {message}")
    assert told.err.count("\n") == 1

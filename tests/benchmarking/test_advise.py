"""``es.advise`` and ``efcn-sparse doctor --sparsify``: what is timed, what is concluded from times, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.cli.main import main
from efcn_sparse.measure.advise import Advice, LayerAdvice, Timing

DENSITIES = (0.5, 0.25, 0.1)


def measured(dense: float, **slopes: float) -> LayerAdvice:
    """Times ``1 + slope · density``, forward twice as fast."""
    sides = {"small": (8, 8), "large": (32, 32)}
    timings = [
        Timing(sides[name], d, d, (1 + slope * d) / 2, 1 + slope * d)
        for name, slope in slopes.items()
        for d in DENSITIES
    ]
    return LayerAdvice((64, 64), ("0", "2"), {"training": dense, "forward": dense}, tuple(timings))


def test_where_it_pays_is_where_the_line_of_times_meets_the_dense_time() -> None:
    layer = measured(2.0, small=5.0, large=4.0)
    assert layer.pays_below("training", (8, 8)) == pytest.approx(0.2)
    assert layer.pays_below("training") == pytest.approx(0.25)
    assert layer.pays_below("forward", (8, 8)) == 0.5  # at all that was measured
    assert measured(1.3, small=5.0).pays_below() is None
    assert layer.best_block_shape() == (32, 32)
    assert layer.speed_up(layer.of((32, 32))[0]) == pytest.approx(2 / 3)
    advice = Advice((layer,), {}, 8, "float32", "cpu", 1)
    assert advice.rules(0.24) == {name: dict(density=0.24, block_shape=(32, 32)) for name in ("0", "2")}
    assert advice.rules(0.26) == {}
    assert len(advice.rules(0.26, "forward")) == 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.head.weight = self.embedding.weight
        self.first, self.second = nn.Linear(32, 64), nn.Linear(32, 64, bias=False)
        self.third, self.small = nn.Linear(64, 32), nn.Linear(32, 4)


def test_each_shape_is_timed_once_and_what_cannot_be_replaced_is_left() -> None:
    with torch.device("meta"):
        model = Tied()
    advice = es.advise(model, 4, block_shapes=[(8, 8), (16, 16)], densities=[0.05, 0.5], seconds=0)
    assert [(layer.shape, layer.names) for layer in advice.layers] == [
        ((64, 32), ("first", "second")), ((32, 64), ("third",))
    ]  # fmt: skip
    assert "shared with 'embedding.weight'" in advice.left["head"]
    assert advice.left["small"] == "it is smaller than every block shape"
    for layer in advice.layers:
        stored = [(t.block_shape, t.density, t.stored) for t in layer.timings]
        assert stored[0] == ((8, 8), 0.5, 0.5)
        assert stored[1] == ((8, 8), 0.05, 0.25)  # 8 of 4×8 blocks: one in each of the longer side
        assert stored[3] == ((16, 16), 0.05, 0.5)
        assert min(t.forward for t in layer.timings) > 0
        assert layer.timings[2].training == layer.timings[3].training  # as many blocks: timed once
    told = str(advice)
    assert "64×32  first, second" in told
    assert "0.25" in told
    assert "not timed: 'head'" in told
    assert es.advise({"up": (64, 32)}, 4, seconds=0, dtype=torch.bfloat16).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch=0), "batch must be an integer of at least 1, got 0"),
        (dict(densities=[0.0]), r"densities must lie in \(0, 1\], got \[0.0\]"),
        (dict(block_shapes=[(8,)]), "block_shapes must be pairs of integers of at least 1"),
        (dict(model=nn.ReLU()), "model must hold an nn.Linear that can be replaced, got ReLU"),
        (
            dict(model=nn.Sequential(nn.Linear(7, 64), nn.Linear(64, 4)), block_shapes=[(8, 8)]),
            r"block_shapes must hold one that fits into a layer, \[\[64, 7\], \[4, 64\]\], got \[\(8, 8\)\]",
        ),
        (dict(dtype=torch.int32), "dtype must be float64, float32, bfloat16 or float16, got torch.int32"),
        (dict(seconds=-1), "seconds must be at least 0, got -1"),
        (dict(model={"a": (1 << 20, 1 << 20)}), r"'a' \[1048576, 1048576\] at batch 4 needs .* take a smaller batch"),
    ],
)
def test_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        es.advise(**{"model": nn.Linear(8, 8), "batch": 4, **arguments})


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mymlp.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("efcn_sparse.measure.advise._MOST_ROUNDS", 0)
    assert main(["doctor", "--sparsify", "mymlp:net", "--batch", "4"]) == 0
    assert "pays below" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert main(["doctor", "--sparsify", "mymlp:net", "--batch", "4", "--json", "--plot", "speed.svg"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [layer["shape"] for layer in told["layers"]] == [[32, 64], [64, 32]]
    assert set(told["layers"][0]["pays_below"]) == {"forward", "training"}
    assert "cpu" in told["machine"]
    assert (tmp_path / "speed.svg").read_text().startswith("<?xml")
    for batch, got in (([], "None"), (["--batch", "0"], "0")):
        assert main(["doctor", "--sparsify", "mymlp:net", *batch]) == 2
        words = f"--batch must be an integer of at least 1, the rows of each layer's input, got {got}"
        assert words in capsys.readouterr().err
    for option in (["--measure"], ["--leave-uncalled"], ["--support", "foo"]):
        assert main(["doctor", "--sparsify", "mymlp:net", "--batch", "4", *option]) == 2
        assert f"{option[0]} must be left out with --sparsify" in capsys.readouterr().err
    assert main(["doctor", "--sparsify", "json:dumps", "--batch", "4"]) == 2
    assert "MODEL must be callable without arguments, got 'json:dumps'" in capsys.readouterr().err

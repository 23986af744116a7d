"""The experiment of docs/relax.md on Fashion-MNIST, at toy size."""

import json

import numpy as np
import pytest
import torch

from experiments import headline


@pytest.fixture
def folder(tmp_path):
    """IDX files of 60 training and 20 test images, each with a bright spot where its class says."""
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 20)):
        y = generator.integers(0, 10, count).astype(np.uint8)
        x = generator.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        x[np.arange(count), 2 * y + 3, 14] = 255
        for name, array in ((f"{prefix}-images-idx3-ubyte", x), (f"{prefix}-labels-idx1-ubyte", y)):
            sizes = np.array(array.shape, ">u4").tobytes()
            (tmp_path / name).write_bytes(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes())
    return tmp_path


def test_validated_on_training_images(folder):
    validation, test = (headline.images_of(folder, False, test) for test in (False, True))
    raw = headline.read_idx(folder / "train-images-idx3-ubyte").float()
    mean, deviation = raw[:50].mean(), raw[:50].std()
    torch.testing.assert_close(validation.test_x[:, 0], (raw[50:] - mean) / deviation)
    assert len(validation.train_x) == 50
    assert len(test.test_x) == 20
    torch.testing.assert_close(validation.train_x, test.train_x)


def test_shift_moves_each_image_whole():
    x = torch.zeros(40, 28, 28, dtype=torch.uint8)
    x[:, 14, 14] = 7
    moved = headline._shift(x, 3)
    at = moved.nonzero()
    assert len(at) == 40
    assert (moved.sum((1, 2)) == 7).all()
    assert ((at[:, 1:] - 14).abs() <= headline.SHIFT).all()
    assert len(at[:, 1:].unique(dim=0)) > 20


def test_table_of_a_whole_run(folder, tmp_path, monkeypatch, capsys):
    tiny = headline.Case("50 images", (0, 1), 1, images=50, width=2, shifted=True)
    monkeypatch.setattr(headline, "CASES", {"tiny": tiny})
    headline.main([
        "--cases", "tiny", "--seeds", "2", "--data", str(folder), "--run-dir", str(tmp_path / "runs"),
        "--results", str(tmp_path / "headline.json"), "--figure", str(tmp_path / "headline.svg"),
    ])  # fmt: skip
    found = json.loads((tmp_path / "headline.json").read_text())
    (at_0, at_1) = headline.rows(found)
    efcn, cnn, stem = (np.array(found["tiny"][key]) for key in ("efcn-full/1/2", "cnn//2", "cnn//1"))
    assert at_1.over_cnn[0] == pytest.approx((efcn - cnn).mean())
    assert at_1.over_stem[0] == pytest.approx((efcn - stem).mean())
    half = 12.7062 * np.std(efcn - cnn, ddof=1) / 2**0.5  # Student's t of one degree of freedom
    assert at_1.over_cnn[1] == pytest.approx(half, rel=1e-3, abs=1e-9)
    assert at_0.end == 1
    assert f"| {at_0.efcn:.1f} |" in capsys.readouterr().out
    assert (tmp_path / "headline.svg").stat().st_size > 1000

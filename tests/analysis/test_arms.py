"""Colors that readers with color-vision deficiencies can tell apart, and that do not change."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from efcn_sparse.analysis.figures.canvas import colors_of_times
from efcn_sparse.analysis.looks import FAMILIES, Look, looks_of
from efcn_sparse.analysis.run_data import read_run
from efcn_sparse.embedding.support import KINDS, Full, Local
from efcn_sparse.training.arms import ELCN, Arm
from tests.analysis.synthetic import write_run

ARMS = [
    "cnn", "cnn-relaxed", "elcn", "efcn-dilated1", "efcn-dilated2", "efcn-dilated4", "efcn-grown1.5", "efcn-grown2",
    "efcn-grown4", "efcn-lowrank4", "efcn-lowrank8", "efcn-lowrank16", "efcn-full", "fcn",
]  # fmt: skip
SEEN = {  # linear RGB, severity 1 (Machado, Oliveira, Fernandes 2009)
    "normal": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
}


def _lab(color: str, seen: np.ndarray) -> np.ndarray:
    srgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.clip(seen @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _looks(*names: str) -> dict[str, Look]:
    return {str(arm): look for arm, look in looks_of(map(Arm.parse, names)).items()}


@pytest.mark.parametrize("vision", SEEN)
def test_arms_are_told_apart(vision):
    for (a, first), (b, second) in itertools.combinations(_looks(*ARMS).items(), 2):
        distance = np.linalg.norm(_lab(first.color, SEEN[vision]) - _lab(second.color, SEEN[vision]))
        assert distance > 12, (a, b, distance)
        assert first.marker != second.marker


def test_each_kind_of_support_has_colors():
    assert FAMILIES.keys() == set(KINDS) - {Local, Full}


@pytest.mark.parametrize(
    ("family", "label"),
    [("efcn-dilated", "eFCN dilated "), ("efcn-grown", "eFCN grown "), ("efcn-lowrank", "eFCN low rank ")],
)
@pytest.mark.parametrize("sizes", ["1", "1 2", "1 2 12"])
def test_a_family_of_supports_has_one_hue_and_larger_ones_are_darker(family, label, sizes):
    arms = [family + size for size in sizes.split()]
    among = _looks("cnn", *reversed(arms), "efcn-full")
    looks = [among[arm] for arm in arms]
    lab = [_lab(look.color, SEEN["normal"]) for look in looks]
    assert [look.label for look in looks] == [label + size for size in sizes.split()]
    lightness = [one[0] for one in lab]
    assert lightness == sorted(lightness, reverse=True)
    assert (np.array(lightness) < 80).all(), "seen on white"
    hues = np.array([one[1:] / np.linalg.norm(one[1:]) for one in lab])
    assert (hues @ hues.T > np.cos(np.radians(40))).all()


def test_arms_are_sorted_by_family_and_size():
    in_order = [
        "cnn", "cnn-relaxed", "elcn", "efcn-dilated2", "efcn-dilated10", "efcn-grown1.5", "efcn-grown2",
        "efcn-grown2-dilated1", "efcn-grown10", "efcn-lowrank4", "efcn-lowrank16", "efcn-full", "fcn",
    ]  # fmt: skip
    arms = [Arm.parse(name) for name in in_order]
    assert sorted(random.Random(0).sample(arms, len(arms)), key=lambda arm: arm.order) == arms
    assert [str(arm) for arm in arms] == in_order
    assert Arm.parse("efcn-grown2-dilated1").label == "eFCN grown 2 from dilated 1"


@pytest.mark.parametrize("name", ["efcn", "efcn-local", "efcn-dilated0", "efcn-grown1.50", "CNN", "full", 3])
def test_an_arm_has_one_name(name):
    with pytest.raises(ValueError, match=f"^each of arms must be one of cnn, fcn, elcn, .*, got {name!r}$"):
        Arm.parse(name)


def test_a_relax_time_has_one_color_while_the_run_goes_on(tmp_path, config):
    whole = read_run(write_run(tmp_path / "whole", config, checkpoints=False))
    begun = read_run(
        write_run(
            tmp_path / "begun", config, checkpoints=False, last=lambda s: s.last if s.relax_epoch in (None, 4) else -1
        )
    )
    assert list(colors_of_times(whole)) == [0, 1, 4, 12]
    assert colors_of_times(begun) == {4: colors_of_times(whole)[4]}
    assert colors_of_times(whole, [ELCN]) == colors_of_times(whole)

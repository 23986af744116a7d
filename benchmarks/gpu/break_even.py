"""The density at which the sparse product takes as long as the dense one. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.gpu.cases import OPERATIONS

Key = tuple[str, int, int]


def break_even(found: Sequence[dict[str, Any]]) -> dict[Key, dict[str, tuple[str, float]]]:
    """By size, block and batch, for each operation: ``("", density)``, or a bound: ``("> ", most)``, ``("< ", least)``.

    Args:
        found: results of ``products.measure``. Between measured densities the ratio of times is taken as linear.
    """
    points: dict[Key, dict[str, list[tuple[float, float]]]] = {}
    for case in found:
        key = f"{case['out_features']}×{case['in_features']}", case["block"], case["batch"]
        for operation in OPERATIONS:
            one = case[operation]
            if "failed" in one:
                continue
            ratio = 1.0 / one["times_faster_than_dense"]
            points.setdefault(key, {}).setdefault(operation, []).append((case["density"], ratio))
    return {key: {op: _crossing(sorted(line)) for op, line in lines.items()} for key, lines in points.items()}


def _crossing(line: list[tuple[float, float]]) -> tuple[str, float]:
    if line[0][1] >= 1.0:
        return "< ", line[0][0]
    for (density, ratio), (next_density, next_ratio) in pairwise(line):
        if next_ratio >= 1.0:
            return "", density + (next_density - density) * (1.0 - ratio) / (next_ratio - ratio)
    return "> ", line[-1][0]

"""Barriers and curvatures of a landscape.json, over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from efcn_sparse.analysis.landscape import ALL, Found
from efcn_sparse.analysis.statistics import Spread, spread
from efcn_sparse.landscape.parts import PARTS
from efcn_sparse.training.arms import CNN, Arm

HEIGHTS = ("barrier", "rise")
LOSSES = ("train_loss", "test_loss")
_MEASURED: dict[str, Callable[[dict[str, float]], float]] = {
    "top": lambda numbers: numbers["top"],
    "mean": lambda numbers: numbers["trace"] / numbers["dimension"],
    "along": lambda numbers: numbers["along"],
}


def heights(found: Sequence[Found], arm: Arm, what: str, relax_epoch: int, loss: str, measured: str) -> list[float]:
    """The ``barrier`` or the ``rise`` of ``train_loss`` or ``test_loss`` on linear paths, one for each seed."""
    return [getattr(one.along(loss), measured) for one in of(found, arm, what, relax_epoch, "linear")]


def curvature(found: Sequence[Found], arm: Arm, moment: str, relax_epoch: int, part: str, measured: str) -> Spread:
    """Of a part: the largest eigenvalue, ``top``, their ``mean``, or that ``along`` its way to the end."""
    rows = [one.numbers[part] for one in of(found, arm, moment, relax_epoch, "curvature") if part in one.numbers]
    return spread([_MEASURED[measured](row) for row in rows])


def of(found: Sequence[Found], arm: Arm, what: str, relax_epoch: int, kind: str) -> list[Found]:
    """What was measured of an arm and a relax time, one for each seed."""
    wanted = (arm, what, relax_epoch, kind)
    return [one for one in found if (one.item.arm, one.item.what, one.item.relax_epoch, one.item.kind) == wanted]


def arms_and_times(found: Sequence[Found]) -> list[tuple[Arm, int]]:
    """The embedded arms and relax times that were measured, in order."""
    keys = {(one.item.arm, one.item.relax_epoch) for one in found if one.item.arm != CNN}
    return sorted(keys, key=lambda key: (key[0].order, key[1]))


def tables(found: Sequence[Found]) -> str:
    """What happens to the training loss on linear paths, then curvatures at the start.

    Means over seeds, and halves of their 95% confidence intervals.
    """
    barriers = [["linear paths to the end", "seeds"]]
    barriers[0] += [f"{measured} from {start}" for start in ("t_w", "the CNN's end") for measured in HEIGHTS]
    curvatures = [["curvature at the start", "of", "largest", "mean", "on its way"]]
    for arm, time in arms_and_times(found):
        name = f"{arm} t_w={time}"
        spreads = [
            spread(heights(found, arm, what, time, "train_loss", measured))
            for what in ("left", "cnn")
            for measured in HEIGHTS
        ]
        seeds = len(of(found, arm, "left", time, "linear"))
        finite = str(seeds) if spreads[0].n == seeds else f"{spreads[0].n} of {seeds} finite"
        barriers.append([name, finite, *map(_text, spreads)])
        for part in (ALL, *PARTS):
            at_start = [curvature(found, arm, "start", time, part, measured) for measured in _MEASURED]
            if at_start[0].n:
                curvatures.append([name, part, *map(_text, at_start)])
    text = "\n\n".join(aligned(rows) for rows in (barriers, curvatures) if len(rows) > 1)
    return text + ("\n\n±: 95% interval of the mean over seeds" if "±" in text else "")


def _text(found: Spread) -> str:
    if not found.n:
        return "–"
    return f"{found.mean:.3g}" + (f" ± {found.half_width:.2g}" if math.isfinite(found.half_width) else "")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )

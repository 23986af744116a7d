"""What the report needs of the checkpoints: images of one unit's weights, and norms by distance."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from efcn_sparse.analysis.layer_weights import DistanceProfile, distance_profile, incoming_weights, receptive_field
from efcn_sparse.analysis.run_data import Floats, Run
from efcn_sparse.embedding import EmbeddedConv, embedded_layers
from efcn_sparse.training.arms import ELCN, Arm
from efcn_sparse.training.run.checkpoint import checkpoint_path, load_checkpoint, stored_block_shapes
from efcn_sparse.training.run.nets import build_like
from efcn_sparse.training.run.plan import Stage
from efcn_sparse.training.run.source import Source
from efcn_sparse.training.task import Task

_log = logging.getLogger("efcn_sparse.analysis")
AT_MOST = 3  # relax times that are shown


@dataclass(frozen=True)
class LayerWeights:
    """One embedded layer at one moment.

    Attributes:
        image: float64 ``[height, width]``: the L2 norm over the input channels of a unit's weights at each input pixel;
            one-dimensional inputs have height 1, of three-dimensional ones the norm over the first dimension is taken.
        box: first and last row, first and last column of the unit's receptive field.
        unit: the unit's output channel, then its output pixel.
        profile: the norms by distance, over all units.
    """

    image: Floats
    box: tuple[tuple[int, int], tuple[int, int]]
    unit: tuple[int, ...]
    profile: DistanceProfile


@dataclass(frozen=True)
class Moment:
    """A checkpoint of an eFCN: ``when`` is ``embedding``, ``midway`` or ``end``."""

    arm: Arm
    relax_epoch: int
    when: str
    epoch: int
    layers: dict[str, LayerWeights]


@dataclass(frozen=True)
class Weights:
    """The moments that could be read, the relax times chosen, the seed, and a sentence for each gap."""

    seed: int
    times: tuple[int, ...]
    moments: tuple[Moment, ...]
    gaps: tuple[str, ...]

    def find(self, arm: Arm, relax_epoch: int, when: str) -> Moment | None:
        """The moment asked for, if its checkpoint was there."""
        wanted = (arm, relax_epoch, when)
        return next((m for m in self.moments if (m.arm, m.relax_epoch, m.when) == wanted), None)


def read_weights(run: Run, task: Task | None = None) -> Weights:
    """Read the eFCN checkpoints of the first seed that has any, at the first, the middle and the last relax time.

    One checkpoint is in memory at a time. What is missing or cannot be read becomes an entry of ``gaps``; of what
    cannot be read a warning tells, too.
    """
    planned = [stage for stage in run.plan if stage.arm.embedded and stage.arm != ELCN]
    if not planned:
        return Weights(0, (), (), ("The run has no eFCN arm.",))
    seed = next((stage.seed for stage in planned if any(_there(run, stage))), planned[0].seed)
    planned = [stage for stage in planned if stage.seed == seed]
    times = _chosen_times(run, planned)
    if not times:
        return Weights(seed, (), (), ("No eFCN checkpoint has been written yet.",))
    moments: list[Moment] = []
    gaps: list[str] = []
    channels: dict[str, int] = {}
    unreadable: dict[str, list[str]] = {}
    try:
        net = _Net(run, Source(task).load(run.config))
    except ValueError as error:
        gaps.append(f"No weights are shown: {error}.")
        _log.warning(gaps[-1])
        return Weights(seed, (), (), tuple(gaps))
    # The last relax time first: the best trained kernel chooses the channel that all moments then show.
    for stage in sorted((s for s in planned if s.relax_epoch in times), key=lambda s: (s.arm.order, -s.first)):
        moments += _moments(run, net, stage, channels, gaps, unreadable)
    for arm, errors in unreadable.items():
        gaps.append(f"Checkpoints of {arm} that could not be read: {len(errors)}. The first is {errors[0]}")
        _log.warning(gaps[-1])
    return Weights(seed, times, tuple(moments), tuple(gaps))


def _there(run: Run, stage: Stage) -> list[bool]:
    return [checkpoint_path(run.path, stage.name, epoch).is_file() for epoch in stage.kept]


def _chosen_times(run: Run, planned: list[Stage]) -> tuple[int, ...]:
    """First, middle and last of the relax times with the most checkpoints."""
    found: dict[int, int] = {}
    for stage in planned:
        found[stage.relax_epoch or 0] = found.get(stage.relax_epoch or 0, 0) + sum(_there(run, stage))
    most = max(found.values())
    times = sorted(time for time, count in found.items() if count == most and count)
    if len(times) < AT_MOST:
        times = sorted(time for time, count in found.items() if count)
    picks = np.linspace(0, len(times) - 1, min(AT_MOST, len(times))).round().astype(int)
    return tuple(times[pick] for pick in picks)


class _Net:
    """The net of a checkpoint; that of the one before is filled anew where it can be, since embedding takes long."""

    def __init__(self, run: Run, task: Task) -> None:
        self._run, self._task = run, task
        self._kind: object = None
        self._model: nn.Module = nn.Identity()

    def load(self, stage: Stage, epoch: int) -> nn.Module:
        path = checkpoint_path(self._run.path, stage.name, epoch)
        shapes = stored_block_shapes(path)
        if self._kind != (stage.arm, shapes):
            self._kind, self._model = None, nn.Identity()  # one at a time in memory
            self._model = build_like(stage.arm, self._task, stage.seed, shapes).eval()
            self._kind = stage.arm, shapes
        load_checkpoint(path, self._model)
        return self._model


def _moments(
    run: Run, net: _Net, stage: Stage, channels: dict[str, int], gaps: list[str], unreadable: dict[str, list[str]]
) -> Iterator[Moment]:
    names = {stage.kept[len(stage.kept) // 2]: "midway", stage.kept[-1]: "end", stage.kept[0]: "embedding"}
    name = stage.arm.label
    for epoch, there in zip(stage.kept, _there(run, stage), strict=True):
        place = f"t_w = {stage.relax_epoch}, epoch {epoch} ({names[epoch]})"
        if not there:
            gaps.append(f"No checkpoint of {name}, {place}.")
            continue
        try:
            model = net.load(stage, epoch)
        except (OSError, ValueError, RuntimeError) as error:
            unreadable.setdefault(name, []).append(f"{place}: {error}")
            continue
        layers = {key: _layer_weights(layer, key, channels) for key, layer in embedded_layers(model).items()}
        yield Moment(stage.arm, stage.relax_epoch or 0, names[epoch], epoch, layers)


@torch.no_grad()
def incoming(layer: EmbeddedConv, unit: int) -> torch.Tensor:
    """A row of W, with what a low-rank part has outside the stored entries."""
    pattern, values = layer.linear.pattern, layer.linear.values.detach()
    row = incoming_weights(values, pattern, unit)
    if layer.low_rank is None:
        return row
    outside = incoming_weights(torch.ones_like(values), pattern, unit) == 0
    return row + (layer.low_rank.right @ layer.low_rank.left[unit]) * outside


@torch.no_grad()
def _layer_weights(layer: EmbeddedConv, name: str, channels: dict[str, int]) -> LayerWeights:
    """The middle output pixel's unit, of the channel with the largest weights in the first moment that is read."""
    geometry = layer.geometry
    pixel = tuple(size // 2 for size in geometry.output_size)
    channels_out = geometry.out_channels
    flat = int(np.ravel_multi_index(pixel, geometry.output_size))
    if name not in channels:
        norms = [incoming(layer, flat * channels_out + c).norm() for c in range(channels_out)]
        channels[name] = int(torch.stack(norms).argmax())
    row = incoming(layer, flat * channels_out + channels[name])
    image = row.double().view(*geometry.input_size, -1).norm(dim=-1)
    box = receptive_field(geometry, pixel)
    if image.dim() == 1:
        image, box = image[None], [(0, 0), *box]
    while image.dim() > 2:
        image, box = image.norm(dim=0), box[1:]
    return LayerWeights(image.numpy(), (box[0], box[1]), (channels[name], *pixel), distance_profile(layer))

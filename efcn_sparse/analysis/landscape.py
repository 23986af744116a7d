"""Paths and curvature between the stored nets of a run: measured once each, and kept in its landscape.json."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from efcn_sparse.checkpoint.atomic import read_json, write_text_atomically
from efcn_sparse.landscape import Path as Along
from efcn_sparse.landscape import hessian, path
from efcn_sparse.landscape.common_support import on_common_support
from efcn_sparse.landscape.parts import PARTS
from efcn_sparse.training.arms import CNN, Arm
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.epoch import TaskData, measure
from efcn_sparse.training.run.nets import kept_epochs, load_arm
from efcn_sparse.training.run.plan import stage_name, stages
from efcn_sparse.training.run.run_directory import held, read_config
from efcn_sparse.training.run.source import DataBySeed, Source
from efcn_sparse.training.run.stage import settled
from efcn_sparse.training.run.trial import recognize
from efcn_sparse.training.task import Task

FILE = "landscape.json"
PATHS = {
    "left": "the CNN at t_w → the embedded net's end",
    "cnn": "the CNN's end → the embedded net's end",
    "control": "the CNN at t_w → the CNN's end",
}
MOMENTS = ("start", "end")
ALL = "all"  # trainable parameters, beside the parts of the embedded weights
KINDS = ("linear", "curvilinear", "output")
_TOLERANCE = 1e-3  # of the largest eigenvalues: seeds differ by more


@dataclass(frozen=True)
class LandscapeSettings:
    """What the numbers of a landscape.json were measured with.

    Attributes:
        points: how many nets of a path are evaluated, both ends included.
        images: at most so many training and test images for each of them.
        curvature_images: so many training images in the Hessian's loss.
        vectors: random ones, for each trace.
    """

    points: int = 11
    images: int = 2000
    curvature_images: int = 500
    vectors: int = 8

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 2 if name in ("points", "vectors") else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Item:
    """One thing to measure of the net of ``arm`` that left the CNN of ``seed`` at ``relax_epoch``.

    Attributes:
        what: a key of ``PATHS``, of which ``kind`` is the path's; or one of ``MOMENTS``, for the curvature there.
        epochs: of the two nets that a path joins; of the embedded net's start and end.
    """

    what: str
    kind: str
    arm: Arm
    seed: int
    relax_epoch: int
    epochs: tuple[int, int]

    @property
    def key(self) -> str:
        """Its name in landscape.json."""
        return f"{stage_name(self.arm, self.seed, self.relax_epoch)} {self.what} {self.kind}"


@dataclass(frozen=True)
class Found:
    """What was measured of an item; ``numbers`` as landscape.json has them, lists for paths."""

    item: Item
    numbers: dict[str, Any]

    def along(self, loss: str) -> Along:
        """The path with ``train_loss`` or ``test_loss`` as its loss."""
        metrics = tuple({"loss": at} for at in self.numbers[loss])
        return Along(self.item.kind, tuple(self.numbers["positions"]), metrics)


def measure_landscape(
    run_dir: str | Path,
    settings: LandscapeSettings | None = None,
    *,
    kinds: Sequence[str] = ("linear",),
    data: str | None = None,
    task: Task | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Path:
    """Measure paths and curvature between the nets that a run has kept, and write them into its landscape.json.

    For each embedded net with checkpoints of its embedding and its end: the losses on the way to its end from the CNN
    that it left and from the CNN's end; those on the way from the CNN it left to the CNN's end, as a control; and at
    its start and its end, for each part of its weights, the largest eigenvalue and the trace of the Hessian of the
    training loss, and the curvature in the direction from the start to the end.

    What landscape.json holds already is not measured again, so a call that was interrupted goes on.

    Args:
        run_dir: a folder that :func:`efcn_sparse.training.run_relax` wrote; nobody may be at work in it.
        settings: None is those of landscape.json, or the default ones.
        kinds: of paths: ``linear``, ``curvilinear``, ``output`` (see :func:`efcn_sparse.landscape.path`).
        data: where the images are, if no longer where the run found them.
        task: of the run, if it is not a preset's.
        tell: is given a line for each thing measured.

    Returns:
        The path of landscape.json.

    Raises:
        ValueError: ``run_dir`` is no run or holds no embedded net's end, landscape.json was measured with other
            settings, ``task`` is another than the run's, or the data are missing.
        BlockingIOError: another process is at work in ``run_dir``.
    """
    config, file = read_config(run_dir), Path(run_dir) / FILE
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {', '.join(wrong)}")
    with held(Path(run_dir), config):
        there, found = _read(file)
        if settings is not None and there is not None and settings != there:
            before, now = (dataclasses.asdict(one) for one in (there, settings))
            names = [name for name in before if before[name] != now[name]]
            wanted = ", ".join(f"{name} {before[name]}" for name in names)
            got = ", ".join(str(now[name]) for name in names)
            raise ValueError(f"settings must be those of {file} (or remove it), {wanted}, got {got}")
        settings = settings or there or LandscapeSettings()
        items, missing = _items(run_dir, config, kinds)
        for sentence in missing:
            tell(sentence)
        if not items:
            raise ValueError(f"run_dir must hold an embedded net's start and end, got none in {run_dir}")
        there_now = config if data is None else dataclasses.replace(config, data=data)
        data_by_seed = DataBySeed(Source(task).load(there_now), there_now)
        if not config.preset:
            with settled(config.device, config.threads):
                recognize(Path(run_dir), config, data_by_seed.of_seed(items[0].seed), items[0].seed)
        done = {one.item.key: one for one in found}
        for number, item in enumerate(items, 1):
            if item.key in done and done[item.key].item == item:  # the CNN may have gone on since
                continue
            done[item.key] = Found(item, _measure(run_dir, config, settings, item, data_by_seed.of_seed(item.seed)))
            write_found(file, settings, [*done.values()])
            tell(f"{number}/{len(items)} {item.key}: {_told(done[item.key])}")
    return file


def read_landscape(run_dir: str | Path) -> list[Found]:
    """What a run's landscape.json holds; nothing, if there is none.

    Raises:
        ValueError: it is damaged.
    """
    return _read(Path(run_dir) / FILE)[1]


def settings_of(run_dir: str | Path) -> LandscapeSettings:
    """Those of the run's landscape.json; the default ones, if there is none."""
    return _read(Path(run_dir) / FILE)[0] or LandscapeSettings()


def _items(run_dir: str | Path, config: RelaxConfig, kinds: Sequence[str]) -> tuple[list[Item], list[str]]:
    """What there is to measure, and sentences on what cannot be."""
    items: dict[str, Item] = {}
    missing, products = 0, set[str]()
    for stage in stages(config):
        if stage.relax_epoch is None or not stage.arm.embedded:
            continue
        left, own = stage.relax_epoch, (stage.relax_epoch, stage.last)
        kept = kept_epochs(run_dir, stage.arm, stage.seed, left)
        cnn = kept_epochs(run_dir, CNN, stage.seed, None)
        if left not in cnn or not {*own} <= {*kept}:
            missing += 1
            continue
        product = stage.arm.support is not None and stage.arm.support.low_rank > 0
        for kind in kinds:
            if product and kind == "curvilinear":
                continue  # it has no norms
            add = [Item("left", kind, stage.arm, stage.seed, left, own)]
            add.append(Item("cnn", kind, stage.arm, stage.seed, left, (cnn[-1], stage.last)))
            if cnn[-1] > left:
                add.append(Item("control", kind, CNN, stage.seed, left, (left, cnn[-1])))
            items |= {item.key: item for item in add}
        if product:
            products.add(stage.arm.label)
            continue
        for item in (Item(moment, "curvature", stage.arm, stage.seed, left, own) for moment in MOMENTS):
            items[item.key] = item
    told = [f"{missing} embedded nets have not come to their end, and are left out"] if missing else []
    told += [
        f"{name}: no curvature and no norms, since its off-local weights are a product" for name in sorted(products)
    ]
    return list(items.values()), told


def _measure(
    run_dir: str | Path, config: RelaxConfig, settings: LandscapeSettings, item: Item, task_data: TaskData
) -> dict[str, Any]:
    def net(arm: Arm, epoch: int) -> nn.Module:
        embedded = arm != CNN
        relax_epoch = item.relax_epoch if embedded else None
        return load_arm(run_dir, arm, item.seed, relax_epoch, epoch, task=task_data.task).to(config.device)

    first, last = item.epochs
    if item.what not in PATHS:
        return _curvature(settings, item, net(item.arm, first), net(item.arm, last), task_data)
    limited = task_data.limited(settings.images, settings.images)
    parts = [slice(at, at + 500) for at in range(0, len(limited.train), 500)]
    along = path(
        net(CNN, first), net(item.arm, last), lambda at: {**measure(at, limited), "loss": 0.0},
        points=settings.points, kind=item.kind, batches=[x for x, _ in limited.train.same_batches(parts, 0)],
    )  # fmt: skip
    names = [name for name in along.metrics[0] if name != "loss"]
    return {"positions": list(along.positions)} | {name: [at[name] for at in along.metrics] for name in names}


def _curvature(
    settings: LandscapeSettings, item: Item, start: nn.Module, end: nn.Module, task_data: TaskData
) -> dict[str, Any]:
    start, end = on_common_support(start, end)
    at = start if item.what == "start" else end
    batches = list(task_data.train.same_batches([slice(0, settings.curvature_images)], 0))
    curved = hessian(at, lambda net, batch: task_data.loss(net, *batch), batches)
    others = dict(start.named_parameters())
    way = {name: (there - others[name]).detach() for name, there in end.named_parameters()}
    numbers: dict[str, Any] = {}
    for part in (None, *PARTS):
        size = curved.dimension(part)
        if size:
            trace = curved.trace(settings.vectors, part=part)
            numbers[part or ALL] = {
                "dimension": size, "top": curved.top(part=part, tol=_TOLERANCE)[0], "trace": trace.value,
                "trace_error": trace.standard_error, "along": curved.along(way, part),
            }  # fmt: skip
    return numbers


def _told(found: Found) -> str:
    if found.item.what in PATHS:
        train, test = (found.along(loss).barrier for loss in ("train_loss", "test_loss"))
        return f"barrier {train:.3g} in training loss, {test:.3g} in test"
    return ", ".join(f"largest {part} {numbers['top']:.3g}" for part, numbers in found.numbers.items())


# -- the file ---------------------------------------------------------------------------------------------------------


def write_found(file: Path, settings: LandscapeSettings, found: Sequence[Found]) -> None:
    """Write landscape.json, atomically."""
    content = {"settings": dataclasses.asdict(settings), "found": [_as_json(one) for one in found]}
    write_text_atomically(file, json.dumps(content, indent=1) + "\n")


def _as_json(found: Found) -> dict[str, Any]:
    item = dataclasses.asdict(found.item) | {"arm": str(found.item.arm)}
    return item | {"numbers": _mapped(found.numbers, lambda number: number if math.isfinite(number) else repr(number))}


def _read(file: Path) -> tuple[LandscapeSettings | None, list[Found]]:
    if not file.is_file():
        return None, []
    content = read_json(file)
    try:
        return LandscapeSettings(**content["settings"]), [_found(one) for one in content["found"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} must hold what was measured, got something else: {error!r}") from None


def _found(row: dict[str, Any]) -> Found:
    numbers = _mapped(row.pop("numbers"), float)
    return Found(Item(**row | {"arm": Arm.parse(row["arm"]), "epochs": tuple(row["epochs"])}), numbers)


def _mapped(content: Any, change: Callable[[Any], Any]) -> Any:
    """``content`` with each number changed: JSON has none that is not finite, so those are kept as text."""
    if isinstance(content, dict):
        return {name: _mapped(value, change) for name, value in content.items()}
    return [_mapped(value, change) for value in content] if isinstance(content, list) else change(content)

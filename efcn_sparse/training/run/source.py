"""Where a task comes from, as it can be sent to a worker, and the examples that it gives."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

from efcn_sparse.default_device import on_cpu
from efcn_sparse.importing import imported
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data.images import Images
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.run.epoch import TaskData
from efcn_sparse.training.task import Task


@dataclass(frozen=True)
class Source:
    """Where a task comes from.

    Attributes:
        task: the task itself; None: that of ``target``, or of the preset.
        target: ``my_file.py:name`` or ``package.module:name``.
        download: whether images of a preset may be fetched.
    """

    task: Task | None = None
    target: str = ""
    download: bool = False

    def load(self, config: RelaxConfig) -> Task:
        """The task."""
        if config.preset:
            return preset_task(config, download=self.download)
        if self.task is None and not self.target:
            raise ValueError("task must be given for a run of a task of one's own, got none")
        return self.task or load_task(self.target)


def load_task(target: str) -> Task:
    """The task that ``my_file.py:name`` or ``package.module:name`` is.

    Raises:
        ValueError: it cannot be imported, or is no task.
    """
    found = imported(target, "task")
    if not isinstance(found, Task):
        raise ValueError(f"task must name a Task, got {target!r}, a {type(found).__name__}")
    return found


class DataBySeed:
    """The task of a run with its examples, which are loaded when they are first asked for; one seed's are kept."""

    _latest: ClassVar[tuple[Source, RelaxConfig, DataBySeed] | None] = None  # of this process

    def __init__(self, task: Task, config: RelaxConfig) -> None:
        self.task, self._config = task, config
        self._kept: tuple[int, TaskData] | None = None

    @classmethod
    def of(cls, source: Source, config: RelaxConfig) -> DataBySeed:
        """What ``source`` gives; the same again for the same arguments, unless the task itself was sent."""
        latest = cls._latest
        if latest is None or source.task is not None or latest[:2] != (source, config):
            latest = cls._latest = source, config, cls(source.load(config), config)
        return latest[2]

    def of_seed(self, seed: int) -> TaskData:
        """The task with the examples of ``seed``."""
        key = seed if any(map(self.task.depends_on_seed, ("train", "test"))) else 0
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # one at a time in memory
            train, test = (
                self.task.examples(field, seed, limit=limit, device=self._config.device)
                for field, limit in (("train", self._config.train_limit), ("test", self._config.test_limit))
            )
            self._kept = key, TaskData(self.task, train, test)
        return self._kept[1]


def load_data(config: RelaxConfig, seed: int = 0, *, download: bool = False) -> Images:
    """The training and test images of ``config``, normalized, limited and on its device.

    ``config.data`` is None for the presets of digits. For Fashion-MNIST it is a folder with the four IDX files, gzipped
    or not; None is where Debian puts them (``dataset-fashion-mnist``). For the CIFAR presets it is a folder with
    parquet files whose names hold ``train`` and ``test``, a folder with ``train/<class>/*.png`` and
    ``test/<class>/*.png``, or a name on the Hugging Face Hub, which is fetched only if ``download`` is true.

    Args:
        seed: decides the split and the positions of ``digits``, and which training images come first in
            ``digits-aligned``; without effect on the others.

    Raises:
        ValueError: there are no data, or not of the preset's shape; the message says how to get them.
        ModuleNotFoundError: scikit-learn or datasets is missing; the message names the extra.
    """
    preset = PRESETS[config.preset]
    with on_cpu():
        if preset.draw is not None:
            if config.data is not None:
                raise ValueError(f"data must be left out for the preset {config.preset}, got {config.data!r}")
            images = preset.draw(seed)
        else:
            assert preset.read is not None
            shape, classes = preset.image_shape, preset.classes
            images = preset.read(config.data, image_shape=shape, classes=classes, download=download)
    train, test = slice(config.train_limit), slice(config.test_limit)
    used = images.train_x[train], images.train_y[train], images.test_x[test], images.test_y[test]
    return Images(*(tensor.to(config.device) for tensor in used))


def preset_task(config: RelaxConfig, *, download: bool = False) -> Task:
    """The task of ``config.preset``. Images are loaded when they are first asked for; those of one seed are kept."""
    preset = PRESETS[config.preset]

    @functools.lru_cache(maxsize=1)
    def images(seed: int) -> Images:
        return load_data(config, seed, download=download)

    def of(seed: int) -> Images:
        return images(0 if preset.draw is None else seed)

    return Task(
        build=functools.partial(preset.build, preset.classes),
        train=lambda seed: (of(seed).train_x, of(seed).train_y),
        test=lambda seed: (of(seed).test_x, of(seed).test_y),
        input_shape=preset.image_shape,
        preset=config.preset,
    )

"""The configuration of a relax run: everything that its numbers depend on."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from efcn_sparse.checkpoint.atomic import parse_json
from efcn_sparse.training.arms import CNN, CONTROL, FCN, FORMS, Arm
from efcn_sparse.training.optim.relaxing import RELAXING, PartEntry, parts_of_layers
from efcn_sparse.training.optim.selective import COPIES
from efcn_sparse.training.optim.shares import Part
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.task import Task


def snapshot_epochs(epochs: int, count: int = 20) -> tuple[int, ...]:
    """The epochs at which the CNN is embedded: 0 and ``count`` log-spaced ones up to ``epochs``.

    It is the original code's ``np.unique(np.logspace(0, log10(epochs), 20).astype(int))``, rounding down included.

    Example:
        >>> snapshot_epochs(30, count=5)
        (0, 1, 2, 5, 12, 29)
    """
    if epochs < 1:
        return (0,)
    return (0, *(int(epoch) for epoch in np.unique(np.logspace(0, np.log10(epochs), count).astype(int))))


@dataclass(frozen=True, kw_only=True)
class RelaxConfig:
    """The settings of :func:`run_relax`; the defaults are those of the original experiment.

    Source: d'Ascoli, Sagun, Biroli, Bruna, "Finding the Needle in the Haystack with Convolutions", NeurIPS 2019.

    Args:
        preset: the architecture and the data, a key of ``PRESETS``; empty for a :class:`Task` of one's own.
        seeds: one whole experiment for each; a seed decides the initial weights, the order of the data, dropout, and
            for ``digits`` also the split and the positions.
        arms: any of ``cnn``, ``fcn``, ``elcn``, ``efcn-dilated<radius>``, ``efcn-grown<budget>``,
            ``efcn-lowrank<rank>``, ``efcn-full``.
        cnn_epochs: the last epoch at which the CNN may be embedded. The CNN itself goes on at the same learning rate
            for as long as any of its embeddings is trained: that is the control.
        relax_epochs: how many epochs an embedded net is trained.
        fcn_epochs: how many epochs the standard FCN is trained.
        snapshots: how many log-spaced relax times there are besides 0, before equal ones are merged.
        relax_times: the relax times themselves; None computes them from ``cnn_epochs`` and ``snapshots``.
        lr, relaxed_lr, fcn_lr: learning rates of the CNN, of the embedded nets and of the FCN; None means ``lr``.
            If ``relaxed_lr`` differs from ``lr``, the arm ``cnn-relaxed`` (the CNN continued at it) is run as well.
        momentum, weight_decay, batch_size: of SGD.
        fused: update the weights of the embedded nets and of the FCN inside the backward pass, so that their gradients
            are never held (:class:`efcn_sparse.FusedOptimizer`); the numbers are the same, bit by bit.
        relaxing: what an embedded net is free to leave: ``both`` weight sharing and locality, only ``sharing``
            (off-local weights stay zero), only ``locality`` (local weights stay tied), or ``none``.
        parts: settings by part and layer, such as ``"off-local:rate=0.5,l1=1e-5"`` or ``"conv1/tied:rate=0"``; see
            :class:`~efcn_sparse.training.optim.relaxing.PartEntry`. They come after ``relaxing``; the last one counts.
        copies: ``mean``, as SGD on W has it, or ``sum``, which gives the tied part the step of the CNN. If this,
            ``relaxing`` or ``parts`` is given, embedded nets train with :class:`SelectiveSGD`.
        carry_momentum: let embedded nets, and ``cnn-relaxed``, go on with the CNN's momentum
            (:func:`efcn_sparse.training.carry_state`) instead of none.
        growth_every, growth_exchange: how many steps lie between two moves of the blocks of an ``efcn-grown`` arm, and
            the share of its off-local blocks that move at the beginning; it falls to nothing by a cosine at three
            quarters of the training (see :class:`efcn_sparse.Growth`).
        train_limit, test_limit: use only so many images; None uses all.
        data: where the images are (see :func:`efcn_sparse.training.load_data`); None for ``digits``.
        device: a torch device.
        threads: of torch within the run; None leaves them as they are.

    Raises:
        ValueError: a field is out of range; the message names it.

    Law: ``RelaxConfig.from_json(config.to_json()) == config``.

    Example:
        >>> config = RelaxConfig.from_preset("digits", seeds=(0, 1, 2))
        >>> config.relax_times[:3]
        (0, 1, 2)
        >>> RelaxConfig(preset="digits", lr=-1)
        Traceback (most recent call last):
        ValueError: lr must be a positive finite number, got -1
    """

    preset: str = ""
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ("cnn", "fcn", "elcn", "efcn-dilated2", "efcn-full")
    cnn_epochs: int = 150
    relax_epochs: int = 100
    fcn_epochs: int = 150
    snapshots: int = 20
    relax_times: tuple[int, ...] = None  # type: ignore[assignment]  # filled in below
    lr: float = 0.1
    relaxed_lr: float = None  # type: ignore[assignment]
    fcn_lr: float = None  # type: ignore[assignment]
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 250
    fused: bool = False
    relaxing: str = "both"
    parts: tuple[str, ...] = ()
    copies: str = "mean"
    carry_momentum: bool = False
    growth_every: int = 100
    growth_exchange: float = 0.3
    train_limit: int | None = None
    test_limit: int | None = None
    data: str | None = None
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.preset, str) or self.preset not in ("", *PRESETS):
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, (least, most) in _COUNTS.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                _check_integer(name, getattr(self, name), least, most)
        computed = snapshot_epochs(self.cnn_epochs, self.snapshots)
        for name, default in {"relax_times": computed, "relaxed_lr": self.lr, "fcn_lr": self.lr}.items():
            if getattr(self, name) is None:
                self._set(name, default)
        for name in ("seeds", "relax_times"):
            self._set(name, _distinct(name, getattr(self, name)))
            for item in getattr(self, name):
                _check_integer(f"each of {name}", item, 0, 2**31 - 1)
        self._set("relax_times", tuple(sorted(self.relax_times)))
        if self.relax_times[-1] > self.cnn_epochs:
            raise ValueError(
                f"each of relax_times must lie in [0, cnn_epochs={self.cnn_epochs}], got {self.relax_times[-1]}"
            )
        self._check_rates()
        self._check_relaxing()
        self._check_arms()
        self._check_places()
        if self.preset:
            build = functools.partial(PRESETS[self.preset].build, PRESETS[self.preset].classes)
            self.check_task(Task(build, (), ()))

    def _check_rates(self) -> None:
        for name, (range_, fits) in _NUMBERS.items():
            value = getattr(self, name)
            if not (_is_number(value) and fits(value)):
                raise ValueError(f"{name} must {range_}, got {value!r}")
            self._set(name, float(value))
        for name in ("fused", "carry_momentum"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _check_relaxing(self) -> None:
        if self.relaxing not in tuple(RELAXING):
            raise ValueError(f"relaxing must be one of {', '.join(RELAXING)}, got {self.relaxing!r}")
        if self.copies not in tuple(COPIES):
            raise ValueError(f"copies must be one of {', '.join(COPIES)}, got {self.copies!r}")
        self._set("parts", tuple(str(PartEntry.parse(text)) for text in _sequence("parts", self.parts)))
        if self.fused and self.selective:
            raise ValueError(
                "fused must be left out beside relaxing, parts or copies: the tied part of a step needs the gradients "
                "of all copies, and a fused update sees those of a few block rows at a time"
            )

    def _check_arms(self) -> None:
        self._set("arms", _distinct("arms", self.arms))
        arms = [Arm.parse(name) for name in self.arms]
        if CONTROL in arms:
            raise ValueError(f"each of arms must be one of {FORMS}, got {CONTROL.name!r}")
        if CNN not in arms and arms != [FCN]:
            raise ValueError(f"arms must hold 'cnn', from which the others are embedded, got {self.arms}")
        runs = len(self.seeds) * len(self.relax_times) * len(arms)
        if runs > _RUNS:
            raise ValueError(f"seeds, relax_times and arms must make at most {_RUNS} training runs, got {runs}")

    def check_task(self, task: Task) -> None:
        """Raise ``ValueError`` if settings do not fit a task."""
        if task.optimizer is not None:
            for name, given in {"momentum": self.momentum, "weight_decay": self.weight_decay}.items():
                if given:
                    raise ValueError(f"{name} must be 0 beside the task's own optimizer, got {given}")
            if self.selective:
                raise ValueError(
                    "relaxing, parts and copies must be left out beside the task's own optimizer: they are settings of "
                    "SelectiveSGD"
                )
        elif self.carry_momentum and not self.momentum:
            raise ValueError("carry_momentum must come with momentum, got momentum 0")
        if not self.selective:
            return
        parts = parts_of_layers(task.convolutions, self.relaxing, self.parts, self.weight_decay)
        low_rank = [arm for arm in self.embedded_arms if arm.support is not None and arm.support.low_rank]
        if low_rank and any(one.off_local != Part(weight_decay=self.weight_decay) for one in parts.values()):
            raise ValueError(
                f"arms must hold no efcn-lowrank<rank> where relaxing or parts set something of off-local weights, "
                f"which a product U Vᵀ does not have one by one, got {low_rank[0]}"
            )

    def _check_places(self) -> None:
        if self.data is not None and not isinstance(self.data, str):
            raise ValueError(f"data must be a path or a name, got {self.data!r}")
        try:
            if not isinstance(self.device, str):
                raise TypeError
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda:0', got {self.device!r}") from None

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    # -- what follows from the fields --------------------------------------------------------------------------

    @property
    def selective(self) -> bool:
        """Whether embedded nets train with :class:`SelectiveSGD`."""
        return self.relaxing != "both" or bool(self.parts) or self.copies != "mean"

    @property
    def embedded_arms(self) -> tuple[Arm, ...]:
        """The arms that are embedded at each relax time, the smaller supports first."""
        arms = (Arm.parse(name) for name in self.arms)
        return tuple(sorted((arm for arm in arms if arm.embedded), key=lambda arm: arm.order))

    @property
    def relaxed_arms(self) -> tuple[Arm, ...]:
        """The arms that start at each relax time: the embedded ones, and the control if its learning rate differs."""
        control = (CONTROL,) if self.embedded_arms and self.relaxed_lr != self.lr else ()
        return (*control, *self.embedded_arms)

    @property
    def control_epochs(self) -> int:
        """How long the CNN is trained: as long as the last of its embeddings."""
        last = max(self.relax_times) + self.relax_epochs if self.embedded_arms else 0
        return max(self.cnn_epochs, last)

    # -- to and from ------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> RelaxConfig:
        """The settings that a preset comes with, save for ``changes``.

        Changing ``cnn_epochs`` or ``snapshots`` computes the relax times anew, and a changed ``lr`` goes for all arms.

        Example:
            >>> RelaxConfig.from_preset("vanilla-cifar10").cnn_epochs
            150
        """
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        settings = dict(PRESETS[preset].settings)
        if not changes.keys().isdisjoint(("cnn_epochs", "snapshots")):
            settings.pop("relax_times", None)
        return cls(preset=preset, **{**settings, **changes})

    def to_json(self) -> str:
        """The configuration as a JSON object, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RelaxConfig:
        """The configuration of :meth:`to_json`; unknown fields are refused."""
        fields = parse_json(text.encode(errors="replace"), "text")
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"text must hold only fields of RelaxConfig, got {', '.join(unknown)}")
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        if "preset" not in arguments:
            raise ValueError("text must have the field preset, got none")
        return cls(**arguments)

    def breaks_with(self, older: RelaxConfig) -> dict[str, tuple[Any, Any]]:
        """The fields in which a run of ``older`` could not go on as one of this: name to ``(there, here)``.

        It may have more seeds, arms and relax times, and then a later last epoch at which to embed.
        """
        there, here = vars(older), vars(self)
        grown = {name for name in ("seeds", "arms", "relax_times") if set(there[name]) <= set(here[name])}
        grown.add("snapshots")  # all that it says is in relax_times
        if self.cnn_epochs >= older.cnn_epochs:
            grown.add("cnn_epochs")
        return {name: (there[name], here[name]) for name in here if there[name] != here[name] and name not in grown}


_EPOCHS = 1_000_000
_COUNTS = {
    "growth_every": (1, 2**31 - 1), "cnn_epochs": (0, _EPOCHS), "relax_epochs": (0, _EPOCHS),
    "fcn_epochs": (0, _EPOCHS), "snapshots": (1, 1000), "batch_size": (1, 2**31 - 1),
    "train_limit": (1, 2**31 - 1), "test_limit": (1, 2**31 - 1), "threads": (1, 4096),
}  # fmt: skip
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("lr", "relaxed_lr", "fcn_lr"), ("be a positive finite number", lambda rate: rate > 0)),
    "momentum": ("lie in [0, 1)", lambda momentum: 0 <= momentum < 1),
    "weight_decay": ("be a finite number of at least 0", lambda decay: decay >= 0),
    "growth_exchange": ("lie in (0, 1]", lambda share: 0 < share <= 1),
}
_OPTIONAL = ("train_limit", "test_limit", "threads")
_RUNS = 100_000
_ITEMS = 1000  # at most, of seeds, arms and relax times


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be an integer of at most {most}, got {value}")


def _sequence(name: str, items: object) -> tuple[Any, ...]:
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise ValueError(f"{name} must be a sequence, got {items!r}")
    return tuple(items)


def _distinct(name: str, items: object) -> tuple[Any, ...]:
    if isinstance(items, Sized) and len(items) > _ITEMS:
        raise ValueError(f"{name} must hold at most {_ITEMS} items, got {len(items)}")
    items = _sequence(name, items)
    try:
        distinct = len(set(items)) == len(items) > 0
    except TypeError:  # a list in it, say
        distinct = False
    if not distinct:
        raise ValueError(f"{name} must hold one or more different items, got {items}")
    return items

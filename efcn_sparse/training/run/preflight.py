"""A run that cannot fit into memory is refused before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import nn

from efcn_sparse import available
from efcn_sparse.embedding import Dilated
from efcn_sparse.planning.budget import Step, StepPlanner, largest
from efcn_sparse.planning.fused_cost import OPTIMIZERS
from efcn_sparse.sizes import parse_size, size_text
from efcn_sparse.training.arms import ELCN, Arm
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.epoch import EVALUATION_BATCH
from efcn_sparse.training.run.source import preset_task
from efcn_sparse.training.task import Task

BUDGET = "EFCN_MEMORY_BUDGET"


@dataclass(frozen=True)
class Net:
    """A net of a run: one arm with what decides its memory."""

    arm: Arm
    batch: int
    fused: bool

    def __str__(self) -> str:
        return f"{self.arm} at batch {self.batch}{', fused' if self.fused else ''}"


def check_device(name: str) -> None:
    """Raise ``ValueError`` unless this torch, on this machine, can use the device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        if torch.device(name).type == "cuda" and not torch.backends.cuda.is_built():
            reason = f"torch {torch.__version__} is built without CUDA"
        raise ValueError(f"device must be one that is here, such as 'cpu', got {name!r}: {reason}") from None


def check_fits(
    config: RelaxConfig, available_bytes: int | None = None, *, task: Task | None = None, at_once: int = 1
) -> None:
    """Raise ``ValueError`` if a net of ``config`` needs more memory than there is, with what comes nearest and fits.

    What is needed is predicted as in :func:`efcn_sparse.planning.predict_step`: the peak of a step, of a growth or of
    the evaluation after an epoch, whichever is most. It is the least that a net can do with: the allocator may keep
    more.

    Args:
        config: the run; nothing of it is built.
        available_bytes: what there is. None: what ``EFCN_MEMORY_BUDGET`` says (a size such as ``100GiB``, or ``none``
            for no check), or else what the machine, its control groups or the GPU have left.
        task: what is trained; None: the preset's.
        at_once: how many nets are trained at the same time, which share what there is.

    Example:
        >>> from efcn_sparse.training import RelaxConfig
        >>> check_fits(RelaxConfig(preset="vanilla-cifar10", arms=("cnn", "efcn-full")), 600 << 20)
        Traceback (most recent call last):
        ValueError: arms must fit into memory, got efcn-full at batch 250, which needs 824.6 MiB of the 600.0 MiB that
        are available; what fits is efcn-full at batch 250, fused (550.6 MiB), or efcn-dilated12 at batch 250
        (596.6 MiB) (EFCN_MEMORY_BUDGET=none skips this check)
    """
    there = _there(config) if available_bytes is None else available_bytes
    if there is None:
        return
    there //= at_once
    needs = Needs(config, task or preset_task(config))
    arms = sorted(map(Arm.parse, config.arms), key=needs.weight_bytes)
    nets = [Net(arm, config.batch_size, config.fused) for arm in arms]
    # the others hold the same activations and fewer weights, but for the CNN, which holds more between its layers, and
    # for layers that are held twice while blocks move
    if all(needs(n) <= there for n in nets if n == nets[-1] or n.arm.support is None or n.arm.moves_blocks):
        return
    for net in nets:
        needed = needs(net)
        if needed > there:
            raise ValueError(
                f"arms must fit into memory, got {net}, which needs {size_text(needed)} of the {size_text(there)} "
                f"that are available; {_nearest(net, needs, there)} ({BUDGET}=none skips this check)"
            )


def _there(config: RelaxConfig) -> int | None:
    given = os.environ.get(BUDGET, "")
    if given:
        return None if given == "none" else parse_size(BUDGET, given)
    return available.available_bytes(config.device)


class Needs:
    """Bytes that a net of the run needs."""

    def __init__(self, config: RelaxConfig, task: Task) -> None:
        self.planner = StepPlanner(task.fresh(0), task.example[:1])
        self._config, self._optimizer = config, _kind(config, task)
        limits = (config.train_limit or EVALUATION_BATCH, config.test_limit or EVALUATION_BATCH)
        self._evaluated = min(EVALUATION_BATCH, max(limits))

    def may_fuse(self, arm: Arm) -> bool:
        """Whether ``fused=True`` would change anything about an arm, and is allowed."""
        return arm.support is not None and not self._config.selective

    def weight_bytes(self, arm: Arm) -> int:
        """Of the embedded layers, about."""
        return 0 if arm.support is None else self.planner.least_bytes(arm.support)

    def __call__(self, net: Net) -> int:
        batch = min(net.batch, self._config.train_limit or net.batch)
        step = Step(net.arm.support, batch, self._optimizer, net.fused)
        growth = self._growth(step) if net.arm.moves_blocks else 0
        return max(self.planner.predict(step).peak, growth, self.planner.reading(step, self._evaluated))

    def _growth(self, step: Step) -> int:
        """What is held while blocks move: all of a step but activations, and the largest layer once more."""
        held = self.planner.predict(step)
        gradient, state = not step.fused, OPTIMIZERS[self._optimizer].state_numbers
        copies = 1 + gradient + state * (2 if step.fused else 1)  # slices of state are joined, then moved
        largest = max(layer.bytes for layer in self.planner.plan(step.support).layers)
        return held.inputs + held.weights + held.structure + held.optimizer + held.gradients + copies * largest


def _kind(config: RelaxConfig, task: Task) -> str:
    """The optimizer of :mod:`efcn_sparse.planning` that keeps as many numbers for each weight."""
    if task.optimizer is None:
        return "momentum" if config.momentum else "sgd"
    weight = nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.zeros(4, 4)
    try:
        optimizer = task.optimizer([weight], config.lr)
        optimizer.step()
    except Exception:  # it is for the net alone
        return "adamw"
    kept = sum(isinstance(entry, torch.Tensor) and entry.dim() > 0 for entry in optimizer.state[weight].values())
    return ("sgd", "momentum", "adamw")[min(kept, 2)]


def _nearest(net: Net, needs: Needs, there: int) -> str:
    """In words: the same net with fused updates, or else of a smaller batch too; and the largest radius that fits."""

    def fits(near: Net) -> bool:
        return needs(near) <= there

    def dilated(near: Net, most: int) -> list[Net]:
        nets = [replace(near, arm=Arm.of(Dilated(radius))) for radius in range(most + 1)]
        return nets[: 1 + largest(most, 0, lambda radius: fits(nets[radius]))][-1:]

    found, frugal = list[Net](), replace(net, fused=net.fused or needs.may_fuse(net.arm))
    if batch := largest(net.batch, 1, lambda batch: fits(replace(frugal, batch=batch))):
        found.append(replace(frugal, batch=batch))
    if net.arm.support is not None and net.arm.embedded and net.arm != ELCN:
        most = net.arm.support.smaller_radius(needs.planner.reach)
        found += dilated(net, most) or dilated(frugal, most)
    if found:
        return "what fits is " + ", or ".join(f"{near} ({size_text(needs(near))})" for near in found)
    least = replace(frugal, batch=1)
    return f"the least of this arm is {least} ({size_text(needs(least))})"

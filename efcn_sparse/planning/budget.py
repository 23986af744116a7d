"""Which supports, batches and optimizers fit into a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding.example_run import Example
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.plan import EmbeddingPlan, check_memory, least_bytes, plan
from efcn_sparse.embedding.support import Dilated, Full, Local, Support
from efcn_sparse.embedding.survey import Site, survey
from efcn_sparse.planning.fused_cost import checked_optimizer
from efcn_sparse.planning.live_memory import meta_copy
from efcn_sparse.planning.step import StepPrediction, watch_reading, watch_step
from efcn_sparse.sizes import size_text


@dataclass(frozen=True)
class Step:
    """A kind of training step: what varies when something that fits is looked for.

    Attributes:
        support: None for the model itself, with nothing embedded.
        batch, optimizer, fused: as for :func:`predict_step`.
    """

    support: Support | None
    batch: int
    optimizer: str = "sgd"
    fused: bool = False

    def __str__(self) -> str:
        what = self.support or "the model itself"
        return f"{what} at batch {self.batch} with {self.optimizer}{', fused' if self.fused else ''}"


@dataclass(frozen=True)
class Fit:
    """What a budget holds.

    Attributes:
        budget: bytes.
        peaks: the peak of a step by support: ``local``, the largest ``dilated<radius>`` that fits and the next one,
            ``full``, and the one asked for.
        largest_radius: the largest radius of :class:`Dilated` that fits; None if not even 0 does.
        reach: the radius at which :class:`Dilated` holds every weight of every layer (within groups).
    """

    budget: int
    peaks: dict[str, int]
    largest_radius: int | None
    reach: int


class StepPlanner:
    """Predictions of training steps of one model, for any support, batch and optimizer.

    Args:
        model, layers: as for :func:`predict_step`.
        example_input, example_inputs, example_kwargs, leave_uncalled: as for :func:`embed`; the first side of the first
            tensor is the batch.

    Example:
        >>> import torch
        >>> planner = StepPlanner(nn.Conv2d(64, 64, 3, padding=1), torch.empty(1, 64, 8, 8, device="meta"))
        >>> fit = planner.fit(Step(Local(), 32), 48 << 20)
        >>> fit.largest_radius, fit.reach, fit.peaks["full"] > 48 << 20
        (1, 6, True)
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor | tuple[Tensor, ...] | None = None,
        layers: Mapping[str, Any] | None = None,
        *,
        example_inputs: tuple[Any, ...] | None = None,
        example_kwargs: Mapping[str, Any] | None = None,
        leave_uncalled: bool = False,
    ) -> None:
        self._example = Example.of(example_input, example_inputs, example_kwargs)
        self._model, self._layers, self._leave_uncalled = model, layers, leave_uncalled
        self._plans: dict[Support, EmbeddingPlan] = {}
        self._steps: dict[Step, StepPrediction] = {}
        self._readings: dict[tuple[Support | None, int], int] = {}

    def plan(self, support: Support | None) -> EmbeddingPlan:
        """What :func:`efcn_sparse.embedding.plan` says; no layers for None."""
        if support is None:
            return EmbeddingPlan(())
        if support not in self._plans:
            self._plans[support] = plan(
                self._model, support=support, layers=self._layers, example_inputs=self._example.args,
                example_kwargs=self._example.kwargs, leave_uncalled=self._leave_uncalled,
            )  # fmt: skip
        return self._plans[support]

    def predict(self, step: Step) -> StepPrediction:
        """What :func:`predict_step` says."""
        if step not in self._steps:
            kind = checked_optimizer(step.optimizer)
            planned = self.plan(step.support)
            self._steps[step] = watch_step(self._model, self._inputs(step.batch), planned, kind, step.fused)
        return self._steps[step]

    def reading(self, step: Step, batch: int) -> int:
        """The peak in bytes while the model is evaluated between steps, ``batch`` inputs at a time."""
        held, key = self.predict(step), (step.support, batch)
        if key not in self._readings:
            self._readings[key] = watch_reading(self._model, self._inputs(batch), self.plan(step.support))
        parts = held.weights + held.structure + held.optimizer + held.gradients + held.workspace
        return parts + self._readings[key]

    @cached_property
    def _sites(self) -> list[Site]:
        return self._surveyed(Local())

    def _surveyed(self, support: Support) -> list[Site]:
        return survey(self._model, self._example, support, self._layers, self._leave_uncalled).sites

    def check_memory(self, support: Support, device: torch.device | str = "cpu") -> None:
        """Raise ``ValueError`` if the weights alone are more than ``device`` has memory for, with what fits."""
        check_memory(self._surveyed(support), device)

    @property
    def reach(self) -> int:
        """The radius at which :class:`Dilated` holds every weight of every layer (within groups)."""
        return max(_reach(site.geometry) for site in self._sites)

    def least_bytes(self, support: Support) -> int:
        """Of the weights in the support alone: what no step can do without, known without counting blocks."""
        return least_bytes(self._sites, support)

    def fit(self, step: Step, budget: int) -> Fit:
        """Which supports fit into ``budget`` bytes, all else being as in ``step``.

        Raises:
            ValueError: not even ``Local()`` fits; the message has the figures and the nearest step that does.
        """
        local = self._peak(step, Local())
        if local > budget:
            needed = f"{replace(step, support=Local())}, {size_text(local)}"
            raise ValueError(f"budget must hold {needed}, got {size_text(budget)}; {self._nearest(step, budget)}")
        has_own_supports = any(choice is not None for choice in (self._layers or {}).values())

        def fits(support: Support) -> bool:
            return (has_own_supports or self.least_bytes(support) <= budget) and self._peak(step, support) <= budget

        radius = largest(self.reach, 0, lambda radius: fits(Dilated(radius)))
        next_ones = (0,) if radius < 0 else (radius, radius + 1)
        supports: list[Support] = [Local(), *(Dilated(r) for r in next_ones if r <= self.reach), Full()]
        supports += [step.support] if step.support is not None else []
        peaks = {str(support): self._peak(step, support) for support in supports}
        return Fit(budget, peaks, None if radius < 0 else radius, self.reach)

    def _inputs(self, batch: int) -> Example:
        return self._example.changed(meta_copy).of_batch(batch)

    def _peak(self, step: Step, support: Support) -> int:
        return self.predict(replace(step, support=support)).peak

    def _nearest(self, step: Step, budget: int) -> str:
        """In words: the first that fits of fused updates, a smaller batch with them, and plain SGD as well."""

        def largest_batch(optimizer: str, fused: bool) -> int:
            def fits(batch: int) -> bool:
                return self.predict(Step(Local(), batch, optimizer, fused)).peak <= budget

            return largest(step.batch, 1, fits)

        for optimizer in dict.fromkeys((step.optimizer, "sgd")):
            for fused in dict.fromkeys((step.fused, True)):
                batch = largest_batch(optimizer, fused)
                if batch and (batch == step.batch or fused):
                    found = Step(Local(), batch, optimizer, fused)
                    return f"what fits is {found}, {size_text(self.predict(found).peak)}"
        least = Step(Local(), 1, "sgd", True)
        return f"the least is {least}, {size_text(self.predict(least).peak)}"


def largest(most: int, least: int, fits: Callable[[int], bool]) -> int:
    """The largest number from ``least`` to ``most`` that fits, one less than ``least`` if none does."""
    low, high = least - 1, most + 1  # low fits, high does not or is past the end
    while high - low > 1:
        middle = (low + high) // 2 if high <= most else most
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _reach(geometry: ConvGeometry) -> int:
    everything, local = Full(), Local()
    furthest = 0
    for dim in range(len(geometry.input_size)):
        whole, own = everything.window(geometry, dim), local.window(geometry, dim)
        furthest = max(furthest, -whole.start, whole.stop - 1 - own[-1])
    return furthest

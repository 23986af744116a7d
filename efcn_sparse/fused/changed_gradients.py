"""Gradients that are changed between a backward pass inside ``updating()`` and the step: those of values were not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ChangedGradients:
    """Notes the gradients of the parameters outside the sparse layers as backward ends, and warns of changes, once.

    Args:
        parameters: returns those parameters.
    """

    def __init__(self, parameters: Callable[[], list[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._noted: list[tuple[nn.Parameter, Tensor, int]] = []
        self._will_note = self._warned = False

    def note_after_backward(self) -> None:
        """Note them when the backward pass that runs now has ended."""
        if not self._will_note:
            self._will_note = True
            torch.autograd.Variable._execution_engine.queue_callback(self._note)

    def _note(self) -> None:
        self._will_note = False
        outer: Any = torch._C._current_autograd_node()
        if outer is not None:  # this pass ran within another one, as of checkpoint(use_reentrant=True), which goes on
            outer.register_hook(lambda *_: self.note_after_backward())
            return
        self._noted = [(p, p.grad, p.grad._version) for p in self._parameters() if p.grad is not None]

    def warn(self) -> None:
        """Warn if the gradients are others than those noted."""
        changed = any(
            p.grad is not None and (p.grad is not gradient or gradient._version != version)
            for p, gradient, version in self._noted
        )
        if changed and not self._warned:
            self._warned = True
            warnings.warn(
                "FusedOptimizer: gradients were changed between the backward pass inside updating() and step(), as by "
                "clip_grad_norm_, which does not reach the values of sparse layers; clip with "
                "FusedOptimizer(max_norm=...)"
            )

    def forget(self) -> None:
        """Compare with nothing until the next backward pass."""
        self._noted, self._will_note = [], False

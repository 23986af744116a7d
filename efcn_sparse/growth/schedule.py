"""When blocks move during training, and how many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from efcn_sparse.gradients import Factors, record_factors
from efcn_sparse.growth.growable import is_growable, parts_of
from efcn_sparse.growth.regrow import Regrown, regrow
from efcn_sparse.linear import SparseLinear


class Growth:
    """Move the blocks of a model to where its gradient is large, every so many steps, as RigL does with weights.

    Every ``every`` steps, all blocks off the support are scored by the exact norm of their gradient in that step
    (see :func:`regrow`), and in each layer the best of them take the place of its weakest ones. The first time all
    blocks that may move are exchanged, since nothing but chance has placed them; after that a share
    ``exchange / 2 · (1 + cos(π t / until))`` of them at step t, and none from step ``until`` on.

    What :func:`torch.compile` has traced does not see the recording: call the model itself where :attr:`due`, and the
    compiled one otherwise. Moving blocks does not make it compile again.

    Args:
        model: with convolutions embedded with the support :class:`Grown`, or with layers named by ``layers``.
        optimizer: of the model; its state follows the blocks.
        every: steps from one growth to the next.
        exchange: the share of movable blocks to exchange at the beginning, in (0, 1].
        until: the step at which growth ends; None: never, with a constant share.
        layers: shell-style name patterns of the layers that grow; None: every convolution embedded with ``Grown``. A
            plain :class:`SparseLinear` grows if it is named; its first exchange is one like all others.
        join: what to do with the factors of a layer's gradient first; ``es.distributed.join_factors`` where several
            processes average their gradients, so that they all choose the same blocks.

    Attributes:
        steps: how many steps there have been.

    Raises:
        ValueError: an argument is out of range, or no layer matches.
        TypeError, NotImplementedError: a named layer is none whose blocks may move.

    Source: Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020, arXiv 1911.11134; with blocks in place of
    weights, and gradients that are never formed.

    Example:
        >>> import torch, efcn_sparse as es
        >>> twin = es.embed(nn.Conv2d(4, 4, 3, padding=1), torch.zeros(1, 4, 6, 6), support=es.Grown(1.5))
        >>> optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        >>> growth = es.Growth(twin, optimizer, every=2)
        >>> for step in range(4):
        ...     optimizer.zero_grad()
        ...     with growth.watch():
        ...         twin(torch.randn(8, 4, 6, 6)).square().mean().backward()
        ...     optimizer.step()
        ...     moved = growth.step()
        >>> sorted(moved), growth.steps
        ([''], 4)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int,
        exchange: float = 0.3,
        until: int | None = None,
        layers: Sequence[str] | None = None,
        join: Callable[[Factors], Factors] | None = None,
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {every!r}")
        if not 0.0 < exchange <= 1.0:
            raise ValueError(f"exchange must lie in (0, 1], got {exchange!r}")
        if until is not None and (not isinstance(until, int) or isinstance(until, bool) or until < 1):
            raise ValueError(f"until must be an integer of at least 1 or None, got {until!r}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        self._layers = _growing(model, layers)
        for layer in self._layers.values():
            parts_of(layer)
        self._model, self._optimizer = model, optimizer
        self._every, self._exchange, self._until, self._join = every, float(exchange), until, join
        self._factors: dict[str, Factors] = {}
        self.steps = 0
        self._placed = False

    @property
    def due(self) -> bool:
        """Whether blocks move at the next :meth:`step`."""
        next_step = self.steps + 1
        return next_step % self._every == 0 and (self._until is None or next_step < self._until)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Forward and backward run inside; where blocks are to move, what the choice needs is kept until ``step``.

        Several passes may run inside, or one after another in a ``watch`` each: their gradients add up.
        """
        if not self.due:
            yield
            return
        with record_factors(self._model) as caught:
            yield
        for name, factors in caught.items():
            before = self._factors.get(name)
            self._factors[name] = factors if before is None else Factors.joined([before, factors])

    @torch.no_grad()
    def step(self) -> dict[str, Regrown]:
        """Count a step, after ``optimizer.step()``; move blocks if it is time.

        Returns:
            What has been done, by the name of the layer; empty if nothing was to be done.

        Raises:
            RuntimeError: blocks are to move, and no backward pass ran inside :meth:`watch`.
            ValueError: a gradient or a weight is not finite; the layers that came before it have changed.
        """
        done: dict[str, Regrown] = {}
        if self.due:
            for name, layer in self._layers.items():
                factors = self._factors.get(name if isinstance(layer, SparseLinear) else _inside(name))
                if factors is None:
                    raise RuntimeError(
                        f"{name or 'model'}: forward and backward must run inside growth.watch() before growth.step(), "
                        "and not compiled, got no gradient"
                    )
                if self._join is not None:  # a collective call, so before anything that may end this loop
                    factors = self._join(factors)
                count = self._count(layer)
                if count:
                    done[name] = regrow(layer, factors.dy, factors.x, blocks=count, optimizer=self._optimizer)
            self._placed = True
        self._factors.clear()
        self.steps += 1
        return done

    def _count(self, layer: nn.Module) -> int:
        parts = parts_of(layer)
        movable, pattern = int(parts.movable.sum()), parts.linear.pattern
        outside = math.prod(pattern.grid) - pattern.nnz_blocks
        share = self._exchange
        if self._until is not None:
            share *= 0.5 * (1.0 + math.cos(math.pi * self.steps / self._until))
        if not self._placed and not isinstance(layer, SparseLinear):
            share = 1.0
        return min(math.ceil(share * movable), outside)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the state dicts of model and optimizer."""
        return {"steps": self.steps, "placed": self._placed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.steps, self._placed = int(state_dict["steps"]), bool(state_dict["placed"])


def _growing(model: nn.Module, wanted: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers that grow, by name."""
    around = {name: module for name, module in model.named_modules() if is_growable(module)}
    if wanted is None:
        found: dict[str, nn.Module] = {name: module for name, module in around.items() if module.grows}  # type: ignore[misc]
        if not found:
            raise ValueError(f"model must hold a convolution embedded with Grown(budget), got {type(model).__name__}")
        return found
    if isinstance(wanted, str):
        raise ValueError(f"layers must be a sequence of name patterns, got {wanted!r}")
    inside = {id(module.linear) for module in around.values()}
    known = {
        name: module
        for name, module in model.named_modules()
        if name in around or (isinstance(module, SparseLinear) and id(module) not in inside)
    }
    unused = [text for text in wanted if not any(fnmatchcase(name, text) for name in known)]
    if unused:
        raise ValueError(f"layers must name sparse layers of the model, {sorted(known)}, got {unused}")
    return {name: module for name, module in known.items() if any(fnmatchcase(name, text) for text in wanted)}


def _inside(name: str) -> str:
    return f"{name}.linear" if name else "linear"

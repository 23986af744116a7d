"""When blocks move during training, and how many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from efcn_sparse.gradients import Factors, record_factors
from efcn_sparse.growth.exchange import exchange_blocks, growing_layer, is_growable, state_of_blocks
from efcn_sparse.growth.regrow import Choice, Regrown, choose
from efcn_sparse.growth.scores import NotFiniteError
from efcn_sparse.linear import SparseLinear

# whose state is not of single numbers: factored, or of all parameters together
_CANNOT_FOLLOW = ("LBFGS", "Adafactor", "CAME", "SM3", "Shampoo", "SOAP", "Muon", "Kron")


class Growth:
    """Move the blocks of a model to where its gradient is large, every so many steps, as RigL does with weights.

    Every ``every`` steps, all blocks off the support are scored by the exact norm of their gradient in that step
    (see :func:`regrow`), and in each layer the best of them take the place of its weakest ones. The first time all
    off-local blocks of a convolution embedded with :class:`Grown` are exchanged, since nothing but chance has placed
    them; after that, and in a plain :class:`SparseLinear` always, a share ``exchange / 2 · (1 + cos(π t / until))`` of
    those that may move at step t, and none from step ``until`` on.

    What is chosen for all layers is known before any of them changes. Where the loss, a gradient or a weight is not
    finite then, as in the steps that a gradient scaler skips, nothing moves, and ``skipped`` counts. A layer that got
    no gradient in that step (an expert that was not asked) keeps its blocks.

    What :func:`torch.compile` has traced does not see the recording: call the model itself where :attr:`due`, and the
    compiled one otherwise. Moving blocks does not make it compile again.

    Averages of weights (:class:`torch.optim.swa_utils.AveragedModel`, a moving average of one's own) go wrong once
    their blocks lie elsewhere than the model's: name them as ``copies``, and their blocks move along. The average of a
    block that comes begins at zero, as the block does.

    Args:
        model: with convolutions embedded with the support :class:`Grown`, or with sparse layers.
        optimizer: of the model; its state follows the blocks.
        every: steps from one growth to the next.
        exchange: the share of movable blocks to exchange at the beginning, in (0, 1].
        until: the step at which growth ends; None: never, with a constant share.
        layers: shell-style name patterns of the layers that grow; None: every convolution embedded with ``Grown``, or
            where there is none, every :class:`SparseLinear`.
        join: what to do with the factors of a layer's gradient first; ``es.distributed.join_factors`` where several
            processes average their gradients, so that they all choose the same blocks.
        copies: models whose layers have the names and patterns of ``model``'s and are to keep them so, such as
            an :class:`torch.optim.swa_utils.AveragedModel` of it.

    Attributes:
        steps: how many steps there have been.
        skipped: how many of them were to move blocks and did not, for want of a finite gradient.

    Raises:
        ValueError: an argument is out of range, no layer matches, the optimizer does not hold a layer's values or keeps
            a state that cannot follow (Adafactor, L-BFGS), or a copy has other blocks (in ``step`` too).
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
        copies: Sequence[nn.Module] = (),
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {every!r}")
        if not 0.0 < exchange <= 1.0:
            raise ValueError(f"exchange must lie in (0, 1], got {exchange!r}")
        if until is not None and (not isinstance(until, int) or isinstance(until, bool) or until < 1):
            raise ValueError(f"until must be an integer of at least 1 or None, got {until!r}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        if type(optimizer).__name__ in _CANNOT_FOLLOW:
            kind = type(optimizer).__name__
            raise ValueError(f"optimizer must keep a state for each value, which moves with its block, got {kind}")
        if isinstance(optimizer, torch.optim.SparseAdam):
            raise ValueError("optimizer must take dense gradients, which values have, got SparseAdam; use Adam")
        self._layers = _growing(model, layers)
        self._copies = tuple(copy.module if isinstance(copy, AveragedModel) else copy for copy in copies)
        for layer in self._layers.values():
            state_of_blocks(optimizer, growing_layer(layer).linear.values)
        self._check_copies()
        self._model, self._optimizer = model, optimizer
        self._every, self._exchange, self._until, self._join = every, float(exchange), until, join
        self._factors: dict[str, Factors] = {}
        self._watched = False
        self.steps = self.skipped = 0
        self._unplaced = {name for name, layer in self._layers.items() if not isinstance(layer, SparseLinear)}

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
        handle = self._model.register_forward_pre_hook(self._saw_forward)
        try:
            with record_factors(self._model) as caught:
                yield
        finally:
            handle.remove()
        for name, factors in caught.items():
            before = self._factors.get(name)
            self._factors[name] = factors if before is None else Factors.joined([before, factors])

    @torch.no_grad()
    def step(self) -> dict[str, Regrown]:
        """Count a step, after ``optimizer.step()``; move blocks if it is time.

        Returns:
            What has been done, by the name of the layer; empty if nothing was to be done, or the step was skipped.

        Raises:
            RuntimeError: blocks are to move, and no forward pass ran inside :meth:`watch`.
            ValueError: a copy has other blocks than the model. Nothing has changed then, as after every error but one
                in the midst of moving (out of memory, say), after which each layer is as it was or has moved wholly.
        """
        done: dict[str, Regrown] = {}
        try:
            if self.due:
                if not (self._watched or self._factors):
                    raise RuntimeError(
                        "forward and backward must run inside growth.watch() before growth.step(), and not compiled, "
                        "got no gradient"
                    )
                self._check_copies()
                choices = self._choices()
                self.skipped += choices is None
                for name, choice in (choices or {}).items():
                    done[name] = choice.carry_out()
                    self._unplaced.discard(name)
                    for copy in self._copies if done[name].blocks else ():
                        exchange_blocks(growing_layer(copy.get_submodule(name)), choice.target, choice.result.source)
            self.steps += 1
        finally:
            self._factors.clear()
            self._watched = False
        return done

    def _saw_forward(self, *_: object) -> None:
        self._watched = True

    def _choices(self) -> dict[str, Choice] | None:
        """What to exchange, by layer; None where a gradient or a weight is not finite, or there was no gradient."""
        choices: dict[str, Choice] = {}
        like = next(iter(self._factors.values()), None)
        finite = used = False
        try:
            for name, layer in self._layers.items():
                factors = self._factors.get(name if isinstance(layer, SparseLinear) else _inside(name))
                if self._join is not None:  # a collective call, so before anything that may end this loop
                    factors = self._join(_no_factors(layer, like) if factors is None else factors)
                if factors is None or not len(factors.dy):
                    continue
                used = True
                count = self._count(name, layer)
                if count:
                    choices[name] = choose(layer, factors.dy, factors.x, blocks=count, optimizer=self._optimizer)
            finite = True
        except NotFiniteError:
            pass
        return choices if finite and used else None

    def _count(self, name: str, layer: nn.Module) -> int:
        growing = growing_layer(layer)
        movable, pattern = int(growing.movable.sum()), growing.linear.pattern
        outside = math.prod(pattern.grid) - pattern.nnz_blocks
        share = self._exchange
        if self._until is not None:
            share *= 0.5 * (1.0 + math.cos(math.pi * self.steps / self._until))
        if name in self._unplaced:
            share = 1.0
        return min(math.ceil(share * movable), outside)

    def _check_copies(self) -> None:
        for copy in self._copies:
            for name, layer in self._layers.items():
                mine, theirs = (growing_layer(one).linear.pattern for one in (layer, copy.get_submodule(name)))
                if mine != theirs:
                    raise ValueError(
                        f"copies must have the patterns of the model, {mine.fingerprint} in {name or 'it'}, got "
                        f"{theirs.fingerprint}; adopt_patterns(copy, model.state_dict()) gives it that"
                    )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the state dicts of model and optimizer."""
        return {"steps": self.steps, "placed": not self._unplaced, "unplaced": sorted(self._unplaced)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.steps = int(state_dict["steps"])
        every = {name for name, layer in self._layers.items() if not isinstance(layer, SparseLinear)}
        self._unplaced = every & set(state_dict.get("unplaced", () if state_dict["placed"] else every))


def _no_factors(layer: nn.Module, like: Factors | None) -> Factors:
    """Those of a layer without a gradient, for a collective call."""
    linear = growing_layer(layer).linear
    dtype = linear.values.dtype if like is None else like.dy.dtype
    dy, x = (linear.values.new_empty((0, side), dtype=dtype) for side in (linear.out_features, linear.in_features))
    return Factors(dy, x)


def _growing(model: nn.Module, wanted: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers that grow, by name."""
    around = {name: module for name, module in model.named_modules() if is_growable(module)}
    inside = {id(module.linear) for module in around.values()}
    plain = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear) and module.pattern_owner is None and id(module) not in inside
    }
    if wanted is None:
        found: dict[str, nn.Module] = {name: module for name, module in around.items() if module.grows}  # type: ignore[misc]
        if not found and not plain:
            raise ValueError(
                "model must hold a convolution embedded with Grown(budget), or a SparseLinear, got "
                f"{type(model).__name__} without one"
            )
        return found or {**plain}
    if isinstance(wanted, str):
        raise ValueError(f"layers must be a sequence of name patterns, got {wanted!r}")
    known: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if name in around or name in plain
    }
    unused = [text for text in wanted if not any(fnmatchcase(name, text) for name in known)]
    if unused:
        raise ValueError(f"layers must name sparse layers of the model, {sorted(known)}, got {unused}")
    return {name: module for name, module in known.items() if any(fnmatchcase(name, text) for text in wanted)}


def _inside(name: str) -> str:
    return f"{name}.linear" if name else "linear"

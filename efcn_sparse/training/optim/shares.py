"""The tied, untied and off-local parts of a parameter, each with its own rate, weight decay and L1 penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.ties import OFF_LOCAL
from efcn_sparse.subspace.backends import resolve
from efcn_sparse.subspace.plan import SubspacePlan, plan_of, plan_of_bias

_CHUNK_ELEMENTS = 1 << 18
_NOISE = 4.0  # a tied part of so many units of rounding of its copies is zero


@dataclass(frozen=True)
class Part:
    """How one part of the weights is trained.

    With η = ``lr * rate`` and λ = ``l1``, there are two ways to zero. Without ``beta``, the proximal step: after each
    step magnitudes shrink by ηλ, and those below become zero. With ``beta``, the β-LASSO of Neyshabur ("Towards
    Learning Convolutions from Scratch", NeurIPS 2020, arXiv 2007.13657): θ ← θ − η(∇ + λ sign θ), then θ ← 0 where
    |θ| < βλ. Its threshold has no η, so it stays high (β is 50 there) when steps are small. Momentum never sees the
    penalty.

    Args:
        rate: multiplies the learning rate; 0 freezes the part, penalty and threshold included.
        weight_decay: times the part itself, added to the part of the gradient.
        l1: the penalty λ.
        beta: the threshold's β; None for the proximal step. 0 has no threshold: SGD on the loss with its L1 penalty.

    Laws: a weight that is zero and has a gradient of zero stays exactly zero. A weight that keeps its sign and stays
    above the threshold takes the same step either way, to rounding.

    Raises:
        ValueError: a number is negative or not finite; ``beta`` without ``l1``.

    Example:
        >>> Part(rate=0.1, l1=1e-4)
        Part(rate=0.1, weight_decay=0.0, l1=0.0001, beta=None)
    """

    rate: float = 1.0
    weight_decay: float = 0.0
    l1: float = 0.0
    beta: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "beta" and value is None:
                continue
            if not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a finite number of at least 0, got {value!r}")
        if self.beta is not None and not self.l1:
            raise ValueError(f"l1 must be positive where beta is given, got 0 with beta {self.beta!r}")


@dataclass(frozen=True)
class Parts:
    """The three parts of an embedded convolution's weights, and of its bias, which has no off-local part."""

    tied: Part = Part()
    untied: Part = Part()
    off_local: Part = Part()

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), Part):
                raise TypeError(f"{field.name} must be a Part, got {getattr(self, field.name)!r}")
        if self.untied.l1:
            raise ValueError(
                f"untied.l1 must be 0, got {self.untied.l1}: the untied part of each kernel entry has mean zero, which "
                "shrinking each number alone would not keep"
            )


class Shares:
    """The parts of one parameter, read as blocks that share classes of ties.

    With T the projection onto the tied part, a weighted sum of the three parts of x is ``a∘x + b∘(T x)``, where a and b
    depend on the tie of an element alone: they are kept once for each class.
    """

    def __init__(
        self,
        parts: Parts,
        maps: Tensor,
        class_of_block: Tensor,
        counts: Tensor,
        plan: SubspacePlan,
        *,
        sum_copies: bool,
    ) -> None:
        self._class_of_block, self._plan = class_of_block, plan
        self._local, self._off_local = maps >= 0, maps == OFF_LOCAL
        tied, untied, off_local = parts.tied, parts.untied, parts.off_local
        copies = counts[maps.clamp(min=0).long()].double() if sum_copies else torch.ones_like(maps, dtype=torch.double)
        self._gradient = self._weights(tied.rate * copies, untied.rate, off_local.rate)
        decays = [part.rate * part.weight_decay for part in (tied, untied, off_local)]
        self._decay = self._weights(torch.full_like(copies, decays[0]), *decays[1:]) if any(decays) else None
        self._penalized_tied, self._penalized_off_local = (p if p.rate * p.l1 else None for p in (tied, off_local))

    @classmethod
    def of_weight(cls, layer: EmbeddedConv, parts: Parts, *, sum_copies: bool) -> Shares:
        """Those of ``layer.linear.values``."""
        ties = layer.ties
        return cls(parts, ties.maps, ties.class_of_block, ties.counts, plan_of(ties), sum_copies=sum_copies)

    @classmethod
    def of_bias(cls, layer: EmbeddedConv, parts: Parts, *, sum_copies: bool) -> Shares:
        """Those of ``layer.linear.bias``, which copies the convolution's at each position; without L1."""
        channels, device = layer.geometry.out_channels, layer.ties.maps.device
        positions = layer.linear.out_features // channels
        plan = plan_of_bias(positions, channels, device)
        tied = Part(parts.tied.rate, parts.tied.weight_decay)
        blocks = torch.zeros(positions, dtype=torch.int32, device=device)
        counts = torch.full((channels,), positions, device=device)
        return cls(Parts(tied, parts.untied), plan.maps, blocks, counts, plan, sum_copies=sum_copies)

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The direction of descent: rates times the parts of the gradient and of the decaying parameter."""
        direction = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        self._add(direction, gradient, *self._gradient)
        if self._decay is not None:
            self._add(direction, parameter, *self._decay)
        return direction

    def penalize(self, parameter: Tensor, lr: float) -> None:
        """The subgradient step of the L1 penalties that have a ``beta``, in place, before that of the gradient."""
        values = self._view(parameter)
        part = self._penalized_tied
        if part is not None and part.beta is not None:
            tied = self._tied(parameter)
            # copies that cancel leave a mean of rounding errors, which has no sign
            noise = self._tied(parameter.abs()).mul_(_NOISE * torch.finfo(parameter.dtype).eps)
            values.sub_(tied.sign().mul_(tied.abs() > noise), alpha=lr * part.rate * part.l1)
        part = self._penalized_off_local
        if part is not None and part.beta is not None:
            for chunk, blocks in self._chunks():
                signs = values[chunk].sign().mul_(self._off_local[blocks])
                values[chunk].sub_(signs, alpha=lr * part.rate * part.l1)

    def shrink(self, parameter: Tensor, lr: float) -> None:
        """What brings penalized numbers to zero, in place, after the step: a threshold, or the proximal step."""
        values = self._view(parameter)
        part = self._penalized_tied
        if part is not None:
            tied = self._tied(parameter)
            shrunk = _shrunk(tied, part, lr)
            # a value that is all tied becomes exactly what is left of it, zero included
            moved = torch.where(values == tied, shrunk, values - tied + shrunk)
            values.copy_(torch.where(shrunk == tied, values, moved))
        part = self._penalized_off_local
        if part is not None:
            for chunk, blocks in self._chunks():
                values[chunk].copy_(
                    torch.where(self._off_local[blocks], _shrunk(values[chunk], part, lr), values[chunk])
                )

    def _weights(self, tied: Tensor, untied: float, off_local: float) -> tuple[Tensor | float, Tensor | None]:
        """(a, b) of the weighted sum; a is a number where one will do, and b None where no projection is needed."""
        tiles = untied * self._local.double() + off_local * self._off_local.double()
        used = tiles[self._local | self._off_local]  # elements outside the support are zero, whatever their weight
        a = tiles if bool((used != used[:1]).any()) else float(used[:1].sum())
        b = (tied - untied) * self._local
        return a, b if bool(b.any()) else None

    def _add(self, out: Tensor, x: Tensor, a: Tensor | float, b: Tensor | None) -> None:
        """``out += a∘x + b∘(T x)``."""
        self._add_scaled(out, x, a)
        if b is not None:
            self._add_scaled(out, self._tied(x), b)

    def _add_scaled(self, out: Tensor, x: Tensor, weights: Tensor | float) -> None:
        if isinstance(weights, float):
            if weights:
                self._view(out).add_(self._view(x), alpha=weights)
            return
        source, target, tiles = self._view(x), self._view(out), weights.to(x.dtype)
        for chunk, blocks in self._chunks():
            target[chunk].addcmul_(tiles.index_select(0, blocks), source[chunk])

    def _tied(self, x: Tensor) -> Tensor:
        projected = self._view(x).clone(memory_format=torch.contiguous_format)
        resolve("auto", x.device, x.dtype).project(projected, self._plan, True)
        return projected

    def _chunks(self) -> list[tuple[slice, Tensor]]:
        """Runs of blocks with their classes, so that what is made for each stays small."""
        step = max(1, _CHUNK_ELEMENTS // max(1, self._local[:1].numel()))
        starts = range(0, self._class_of_block.numel(), step)
        return [(slice(start, start + step), self._class_of_block[start : start + step]) for start in starts]

    def _view(self, x: Tensor) -> Tensor:
        return x.view(self._class_of_block.numel(), *self._local.shape[1:])


def _shrunk(x: Tensor, part: Part, lr: float) -> Tensor:
    if part.beta is None:
        return torch.nn.functional.softshrink(x, lr * part.rate * part.l1)
    return x.masked_fill(x.abs() < part.beta * part.l1, 0)

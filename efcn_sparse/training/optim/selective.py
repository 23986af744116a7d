"""SGD with a rate, a weight decay and an L1 penalty of its own for each part of an eFCN's weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.copying import made_again
from efcn_sparse.embedding import EmbeddedConv, embedded_layers
from efcn_sparse.training.optim.shares import Part, Parts, Shares

COPIES = ("mean", "sum")
_PLAIN = Part()


class SelectiveSGD(torch.optim.Optimizer):
    """SGD on the tied, untied and off-local parts of every embedded convolution, each by settings of its own.

    The parts are orthogonal (:func:`efcn_sparse.deviation`), so with momentum too this is three optimizers side by
    side: with ``untied=Part(rate=0)`` only locality is relaxed, with ``off_local=Part(rate=0)`` only sharing is, and
    with both the net stays a CNN. Biases have a tied and an untied part. All other parameters get plain SGD.

    A kernel entry with n copies in W has, in the CNN, the *sum* of the copies' gradients. Plain SGD on W moves the tied
    part by their *mean*, which is n times less. ``copies="sum"`` gives the tied part the CNN's step: it multiplies
    the tied gradient of each kernel entry by its n (fewer for entries that meet padding) and of each bias by the number
    of positions. Weight decay and L1 are not multiplied; they act on the kernel as they do in the CNN.

    Args:
        model: holds at least one embedded convolution; it must be on its device already.
        lr: the learning rate, multiplied by each part's ``rate``.
        momentum: in ``[0, 1)``.
        weight_decay: of all parameters outside the embedded convolutions, whose own is in their parts.
        tied, untied, off_local: the settings of the parts. ``l1`` is for weights only, not for biases; a rate goes for
            both.
        copies: ``"mean"`` or ``"sum"``: how the tied part combines the gradients of the copies.
        layers: settings by shell-style name pattern, ``{"conv1": dict(untied=Part(rate=0))}``; the first match counts,
            and what it leaves out is as for all layers.

    Attributes:
        parts: the settings of each embedded convolution by name.
        copies: as given.

    Blocks that :class:`efcn_sparse.Growth` moves are followed. The matrices of a low-rank part
    (:class:`efcn_sparse.LowRank`) get plain SGD, as parameters outside the convolutions do.

    Laws: with all parts ``Part()`` it is :class:`torch.optim.SGD`. :meth:`as_cnn` moves an embedding as
    ``torch.optim.SGD`` moves the CNN. A part with rate 0 does not move; both hold to rounding, off-local exactly.

    Raises:
        ValueError: a number is out of range, no layer is embedded, or a pattern matches none; ``untied.l1`` is not 0.
        NotImplementedError: a layer with a low-rank part has off-local settings other than ``weight_decay``'s.
        RuntimeError: (in a step) the ties of a layer are no longer those of its values.

    Example:
        >>> import torch, efcn_sparse as es
        >>> efcn = es.embed(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 6, 6), support=es.Full())
        >>> optimizer = SelectiveSGD(efcn, lr=0.1, untied=Part(rate=0.0), off_local=Part(l1=1e-4))
        >>> efcn(torch.randn(8, 2, 6, 6)).square().sum().backward()
        >>> optimizer.step()
        >>> d = es.deviation(efcn)
        >>> d.untied < 1e-5, d.off_local > 0.1
        (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        tied: Part = _PLAIN,
        untied: Part = _PLAIN,
        off_local: Part = _PLAIN,
        copies: str = "mean",
        layers: Mapping[str, Mapping[str, Part]] | None = None,
    ) -> None:
        self._made_of = model, lr, dict(
            momentum=momentum, weight_decay=weight_decay, tied=tied, untied=untied, off_local=off_local, copies=copies,
            layers=layers,
        )  # fmt: skip
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
        if momentum >= 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
        if copies not in COPIES:
            raise ValueError(f"copies must be 'mean' or 'sum', got {copies!r}")
        self._shares: dict[int, Shares] = {}
        embedded = embedded_layers(model)
        self.parts, self.copies = _choose(list(embedded), Parts(tied, untied, off_local), layers or {}), copies
        self._layers = {name: (layer, layer.ties) for name, layer in embedded.items()}
        for name, layer in embedded.items():
            if layer.low_rank is not None and self.parts[name].off_local != Part(weight_decay=weight_decay):
                raise NotImplementedError(
                    f"{name or 'model'}: off_local must be Part(weight_decay={weight_decay!r}) beside a low-rank part, "
                    f"whose weights are no parameters of their own, got {self.parts[name].off_local}"
                )
            self._follow(name, layer)
        super().__init__(
            (parameter for parameter in model.parameters() if parameter.requires_grad),
            dict(lr=lr, momentum=momentum, weight_decay=weight_decay),
        )

    @classmethod
    def as_cnn(cls, model: nn.Module, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> SelectiveSGD:
        """The control: an embedded CNN that goes on as the CNN itself does under :class:`torch.optim.SGD`.

        Kernel entries that only ever meet padding have no copy in W and stay, where weight decay shrinks the CNN's.
        """
        frozen, tied = Part(rate=0.0), Part(weight_decay=weight_decay)
        return cls(
            model, lr, momentum=momentum, weight_decay=weight_decay,
            tied=tied, untied=frozen, off_local=frozen, copies="sum",
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters hold; those without one are left as they are."""
        if closure is not None:
            raise ValueError("closure must be None: compute the gradients before the step")
        for name, (layer, ties) in self._layers.items():
            if layer.ties is not ties:
                self._follow(name, layer)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, **{name: group[name] for name in ("lr", "momentum", "weight_decay")})
        weights_were_written()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is that of the model's copy: copy both at once."""
        return made_again, (type(self), *self._made_of, self.state_dict())

    def _follow(self, name: str, layer: EmbeddedConv) -> None:
        """Take the layer's ties as they are now: blocks may have moved since the last step."""
        weight, bias, sums = layer.linear.values, layer.linear.bias, self.copies == "sum"
        if (len(layer.ties.class_of_block), *layer.ties.maps.shape[1:]) != tuple(weight.shape):
            raise RuntimeError(f"{name or 'model'}: ties must be of the {len(weight)} blocks of values, got others")
        self._shares[id(weight)] = Shares.of_weight(layer, self.parts[name], sum_copies=sums)
        if bias is not None:
            self._shares[id(bias)] = Shares.of_bias(layer, self.parts[name], sum_copies=sums)
        self._layers[name] = layer, layer.ties

    def _step(self, parameter: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        shares = self._shares.get(id(parameter))
        if shares is not None:
            direction = shares.direction(parameter, parameter.grad.contiguous())  # type: ignore[union-attr]
        else:
            direction = parameter.grad.add(parameter, alpha=weight_decay)  # type: ignore[union-attr]
        if momentum:
            state = self.state[parameter]
            if "momentum_buffer" in state:
                direction = state["momentum_buffer"].mul_(momentum).add_(direction)
            else:
                state["momentum_buffer"] = direction
        if shares is not None:
            shares.penalize(parameter, lr)
        parameter.add_(direction, alpha=-lr)
        if shares is not None:
            shares.shrink(parameter, lr)


def _choose(names: list[str], default: Parts, layers: Mapping[str, Mapping[str, Part]]) -> dict[str, Parts]:
    """The parts of each layer by name."""
    known = {field.name for field in dataclasses.fields(Parts)}
    for pattern, changes in layers.items():
        if not isinstance(changes, Mapping) or not set(changes) <= known:
            raise ValueError(f"layers[{pattern!r}] must be a dict of tied, untied and off_local, got {changes!r}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"layers must name embedded convolutions of the model, {names}, got {pattern!r}")
    changes_of = {
        name: next((changes for pattern, changes in layers.items() if fnmatchcase(name, pattern)), {}) for name in names
    }
    return {name: dataclasses.replace(default, **changes) for name, changes in changes_of.items()}

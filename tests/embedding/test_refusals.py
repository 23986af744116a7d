"""What cannot be embedded exactly is refused by name, with the reason, before anything is built."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import efcn_sparse as es


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnTransposed(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return -super().forward(input, output_size)


class OwnInnerForward(nn.Conv2d):
    """Its weight depends on its input."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - input.mean(), bias)


class DropsWeights(nn.Conv2d):
    """Another weight in training than in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, nn.functional.dropout(self.weight, 0.5, self.training), self.bias)


class Noisy(nn.Conv2d):
    """Its weight depends on chance, too rarely for any run to show it."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * (torch.rand(()) > 1e-6), self.bias)


class NoisyByNumpy(nn.Conv2d):
    """Its chance is numpy's global one, of which torch is not told."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * float(numpy.random.rand()), self.bias)  # noqa: NPY002


class Alternating(nn.Conv2d):
    sign = 1

    def forward(self, input: Tensor) -> Tensor:
        self.sign = -self.sign
        return self._conv_forward(input, self.sign * self.weight, self.bias)


class ReadsNumbers(nn.Conv2d):
    """Its weight depends on its input, by a way that no operation shows."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * (1 + abs(input.tolist()[0][0][0][0])), self.bias)


class Constrained(nn.Conv2d):
    """As in EEGNet: a constraint that would be lost."""

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(input)


class Styled(nn.Module):
    """Another module gives a scale that depends on the input."""

    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight * self.scale, self.bias)

    def __init__(self) -> None:
        super().__init__()
        self.conv = self.Scaled(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.conv.scale = 1 + x.amax().clamp(max=1)
        return self.conv(x)


class HasNoWeight(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(2, 2, 1)
        del self.weight
        self.u, self.v = nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.randn(1, 2))

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, (self.u @ self.v)[..., None, None], self.bias)


class ScalesAfterwards(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias).mul_(1.0)


class ChangesWhatItPadded(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        padded = nn.functional.pad(input, (1, 1, 1, 1)).abs_()
        return self._conv_forward(padded, self.weight - self.weight.mean(), self.bias)


class Unpacking(nn.Module):
    """Its convolution returns more than a tensor."""

    class Pair(nn.Conv2d):
        def forward(self, input: Tensor) -> tuple[Tensor, None]:
            return super().forward(input), None

    def __init__(self) -> None:
        super().__init__()
        self.conv = self.Pair(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[0]


class StandardizedOnOneSide(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(nn.functional.pad(input, (0, 1, 0, 1)), self.weight - self.weight.mean(), self.bias)


class Twice(nn.Conv2d):
    """Its output is that of a convolution, of what is none."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(super().forward(input).relu())


class Observing(nn.Conv2d):
    """A convolution, and something else that would be lost."""

    def forward(self, input: Tensor) -> Tensor:
        self.seen = input.mean()
        return super().forward(input)


class Functional(nn.Module):
    """A convolution that no module computes."""

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.kernel, self.mean = nn.Parameter(torch.randn(2, 2, 3, 3)), mean

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel - self.kernel.mean() if self.mean else self.kernel, padding=1)


class QuantizedConv(nn.Module):
    """Stands in for torch's quantized convolutions, which are on their way out of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return x


QuantizedConv.__module__, QuantizedConv.__name__ = "torch.ao.nn.quantized.modules.conv", "Conv2d"


class TwoSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean() + self.conv(x[..., ::2]).mean()


class NeverCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class WeightUsedElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv.weight.mean()


class NoTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> int:
        return self.conv(x).dim()


class RemembersItsConvolution(nn.Module):
    """Computes something else once the convolution is of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1 if isinstance(self.conv, nn.Conv2d) else 2)


def _hooked() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    conv.register_forward_hook(lambda module, inputs, output: output * 2)
    return conv


def _own_attribute() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    conv.forward = lambda input: input  # type: ignore[method-assign]
    return conv


def _shared_weight() -> nn.Module:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, second)


_PARAMETRISED = "its weight is computed by a parametrization (weight_norm, spectral_norm, pruning), not stored"


class TwoOutputSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)[..., :11] + self.up(x, output_size=[11, 12])[..., :11]


_OWN_FORWARD = "its class has a forward of its own, which is not just zero padding and a convolution by fixed numbers"
_INPUT = (1, 2, 6, 6)


class Row(NamedTuple):
    """``name``, ``kind`` and ``reason`` of the error; ``net`` makes the model."""

    net: Callable[[], nn.Module]
    name: str
    kind: str
    reason: str


ROWS = {
    "transposed": Row(lambda: nn.ConvTranspose2d(2, 2, 3, output_padding=1, dilation=2), "0", "ConvTranspose2d",
                      "output_padding must be smaller than stride or at most padding, got [1, 1]"),
    "transposed, own forward": Row(lambda: OwnTransposed(2, 2, 3), "0", "OwnTransposed", _OWN_FORWARD),
    "lazy": Row(lambda: nn.LazyConv2d(2, 3), "0", "LazyConv2d",
                "a lazy module has no weight yet; run the model once first"),
    "lazy transposed": Row(lambda: nn.LazyConvTranspose2d(2, 3), "0", "LazyConvTranspose2d",
                           "a lazy module has no weight yet; run the model once first"),
    "quantized": Row(QuantizedConv, "0", "Conv2d", "a quantized convolution has no floating-point weight"),
    "spectral norm": Row(lambda: parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)), "0", "ParametrizedConv2d",
                         _PARAMETRISED),
    "parametrized bias": Row(lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 3), "bias"), "0",
                             "ParametrizedConv2d", _PARAMETRISED),
    "pruned": Row(lambda: prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", 0.5), "0", "Conv2d", _PARAMETRISED),
    "own forward": Row(lambda: OwnForward(2, 2, 3), "0", "OwnForward", _OWN_FORWARD),
    "own inner forward": Row(lambda: OwnInnerForward(2, 2, 3), "0", "OwnInnerForward", _OWN_FORWARD),
    "other weights in training": Row(lambda: DropsWeights(2, 2, 3), "0", "DropsWeights", _OWN_FORWARD),
    "random weights": Row(lambda: Noisy(2, 2, 3), "0", "Noisy", _OWN_FORWARD),
    "random weights of NumPy": Row(lambda: NoisyByNumpy(2, 2, 3), "0", "NoisyByNumpy", _OWN_FORWARD),
    "other weights each time": Row(lambda: Alternating(2, 2, 3), "0", "Alternating", _OWN_FORWARD),
    "weights by numbers": Row(lambda: ReadsNumbers(2, 2, 3), "0", "ReadsNumbers", _OWN_FORWARD),
    "constrained": Row(lambda: Constrained(2, 2, 3), "0", "Constrained", _OWN_FORWARD),
    "styled": Row(Styled, "0.conv", "Scaled", _OWN_FORWARD),
    "no weight": Row(HasNoWeight, "0", "HasNoWeight", "it has no parameter named weight"),
    "scaled afterwards": Row(lambda: ScalesAfterwards(2, 2, 3), "0", "ScalesAfterwards", _OWN_FORWARD),
    "changes what it padded": Row(lambda: ChangesWhatItPadded(2, 2, 3), "0", "ChangesWhatItPadded", _OWN_FORWARD),
    "a pair": Row(Unpacking, "0.conv", "Pair", _OWN_FORWARD),
    "computed weight, one side": Row(lambda: StandardizedOnOneSide(2, 2, 3), "0", "StandardizedOnOneSide",
                                     "it computes its weight and pads one side by more than the other, which no plain "
                                     "convolution does"),
    "two paths": Row(lambda: Twice(2, 2, 3, padding=1), "0", "Twice", _OWN_FORWARD),
    "own statistics": Row(lambda: Observing(2, 2, 3), "0", "Observing", _OWN_FORWARD),
    "own forward attribute": Row(_own_attribute, "0", "Conv2d", "its class has a forward of its own"),
    "functional": Row(Functional, "0", "Functional",
                      "its forward computes a convolution by itself, with '0.kernel'"),
    "computed kernel": Row(lambda: Functional(mean=True), "0", "Functional",
                           "its forward computes a convolution by itself"),
    "script": Row(lambda: torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))), "0",
                  "RecursiveScriptModule", "its forward computes a convolution by itself, with '0.0.weight'"),
    "complex": Row(lambda: nn.Conv2d(2, 2, 3, dtype=torch.complex64), "0", "Conv2d",
                   "its weight must be of a floating-point dtype"),
    "hooks": Row(_hooked, "0", "Conv2d", "its hooks would be lost"),
    "two sizes": Row(TwoSizes, "0.conv", "Conv2d", "the example run calls it at the input sizes [6, 6] and [6, 3]"),
    "two output sizes": Row(TwoOutputSizes, "0.up", "ConvTranspose2d",
                            "the example run calls it at the output sizes [11, 11] and [11, 12]"),
    "never called": Row(NeverCalled, "0.idle", "Conv2d", "the example run does not call it"),
    "shared weight": Row(_shared_weight, "0.0", "Conv2d", "its weight is shared with '0.1.weight'"),
    "meta": Row(lambda: nn.Conv2d(2, 2, 3, device="meta"), "0", "Conv2d",
                "it is on the meta device and has no numbers; efcn-sparse doctor takes such models"),
}  # fmt: skip


def _message(row: Row) -> str:
    more = ", and leave_uncalled=True every such one" if "does not call it" in row.reason else ""
    return (
        f"cannot embed {row.name!r} ({row.kind}): {row.reason}; layers={{{row.name!r}: None}} leaves it as it is{more}"
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_by_name_and_reason(row: Row) -> None:
    others = [nn.Conv2d(2, 2, 1)] if "by itself" in row.reason else []  # one to embed
    model = nn.Sequential(row.net(), *others)
    with pytest.raises(ValueError, match=f"^{re.escape(_message(row))}$"):
        es.embed(model, torch.randn(_INPUT, device="meta" if "meta" in row.reason else "cpu"))


def test_all_that_functions_compute_is_named_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), Functional(), nn.ReLU(), Functional(mean=True))
    reason = (
        "its forward computes a convolution by itself, with '1.kernel', and so do '3'; layers={'1': None} leaves it"
    )
    with pytest.raises(ValueError, match=re.escape(reason)):
        es.embed(model, torch.randn(2, 2, 6, 6))
    assert es.embed(model, torch.randn(2, 2, 6, 6), layers={"[13]": None})


@pytest.mark.parametrize("name", ["own forward", "hooks", "pruned", "spectral norm", "functional", "script"])
def test_the_way_out_works(name: str) -> None:
    """What the message offers, ``layers={name: None}``, leaves that layer and embeds the others."""
    model = nn.Sequential(ROWS[name].net(), nn.Conv2d(2, 2, 3))
    x = torch.randn(2, 2, 7, 7)
    efcn = es.embed(model, x, layers={"0": None})
    assert type(efcn[0]) is type(model[0]) or "Parametrized" in type(model[0]).__name__
    torch.testing.assert_close(efcn(x), model(x), rtol=1e-5, atol=1e-5)


BEHAVIOUR = {
    "weight used elsewhere": (
        WeightUsedElsewhere,
        "the embedded copy must run on the example, got AttributeError: weight of an embedded convolution "
        "has shape, dtype and device alone, not 'mean': its numbers are in layer.linear.values, those of the nearest "
        "kernel in layer.to_conv().weight",
    ),
    "no tensor": (NoTensor, "embed compares outputs, so the model must return tensors, got int"),
    "something else": (
        RemembersItsConvolution,
        "the embedded copy must compute what the model does on the example, to 0.0001 of the largest output, got a "
        "difference of 1; is a convolution's weight used outside its own call?",
    ),
}


@pytest.mark.parametrize("name", BEHAVIOUR)
def test_a_copy_that_differs(name: str) -> None:
    make, message = BEHAVIOUR[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        es.embed(make(), torch.randn(_INPUT))


_NET = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
_X = torch.zeros(_INPUT)
ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "model": (lambda: es.embed(3, _X), TypeError, "model must be an nn.Module, got int"),
    "no convolution": (lambda: es.embed(nn.Linear(2, 2), _X), ValueError,
                       "model must hold a convolution to embed such as an nn.Conv2d, got Linear "
                       "without one; sparsify makes linear layers block-sparse"),
    "scripted": (lambda: es.embed(torch.jit.script(_NET), _X), ValueError,
                 "model must be embedded before torch.jit scripts or traces it, got RecursiveScriptModule"),
    "traced": (lambda: es.embed(torch.jit.trace(_NET, _X), _X), ValueError,
               "model must be embedded before torch.jit scripts or traces it, got TopLevelTracedModule"),
    "scripted in part": (lambda: es.embed(nn.Sequential(torch.jit.script(_NET)), _X), ValueError,
                         "model must be embedded before torch.jit scripts or traces it, got Sequential with '0' "
                         "scripted"),
    "lazy": (lambda: es.embed(nn.Sequential(_NET, nn.LazyLinear(3)), _X), ValueError,
             "model must have run once, got a LazyLinear without numbers at '1'"),
    "all left": (lambda: es.embed(_NET, _X, layers={"*": None}), ValueError,
                 "model must hold a convolution to embed, got Sequential with ['0'] left as is"),
    "example": (lambda: es.embed(_NET, "x"), TypeError,
                "example_input must be a tensor or a tuple of tensors, got str; other arguments of the model go into "
                "example_inputs=(...) and example_kwargs={...}"),
    "empty example": (lambda: es.embed(_NET, ()), TypeError,
                      "example_input must be a tensor or a tuple of tensors, got tuple; other arguments of the model "
                      "go into example_inputs=(...) and example_kwargs={...}"),
    "support": (lambda: es.embed(_NET, _X, support="local"), TypeError,
                "support must be a Support such as Local() or LowRank(rank), got 'local'"),
    "support class": (lambda: es.embed(_NET, _X, support=es.Local), TypeError,
                      "support must be a Support such as Local() or LowRank(rank), got "
                      "<class 'efcn_sparse.embedding.support.Local'>"),
    "unused pattern": (lambda: es.embed(_NET, _X, layers={"0": es.Full(), "1": None}), ValueError,
                       "layers must name convolutions of the model, ['0'], got ['1']"),
    "rule": (lambda: es.embed(_NET, _X, layers={"0": "full"}), ValueError,
             "layers['0'] must be a Support, None, or a dict of support and block_shape, got 'full'"),
    "rule key": (lambda: es.embed(_NET, _X, layers={"0": dict(blocks=(2, 2))}), ValueError,
                 "layers['0'] must be a Support, None, or a dict of support and block_shape, got {'blocks': (2, 2)}"),
    "block shape": (lambda: es.embed(_NET, _X, layers={"0": dict(block_shape=(0, 2))}), ValueError,
                    "block_shape must be two integers of at least 1, got (0, 2)"),
    "radius": (lambda: es.Dilated(-1), ValueError, "radius must be an integer of at least 0, got -1"),
    "fractional radius": (lambda: es.Dilated(1.5), ValueError, "radius must be an integer of at least 0, got 1.5"),
    "boolean radius": (lambda: es.Dilated(True), ValueError, "radius must be an integer of at least 0, got True"),
    "other size": (lambda: es.embed(_NET, _X)(torch.zeros(1, 2, 5, 6)), ValueError,
                   "input must be [N, 2, 6, 6] or [2, 6, 6], got [1, 2, 5, 6]"),
    "an array": (lambda: es.embed(_NET, _X)(_X.numpy()), TypeError, "input must be a tensor, got ndarray"),
    "other rank": (lambda: es.embed(_NET, _X)(torch.zeros(6, 6)), ValueError,
                   "input must be [N, 2, 6, 6] or [2, 6, 6], got [6, 6]"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str) -> None:
    call, error, message = ARGUMENTS[name]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()

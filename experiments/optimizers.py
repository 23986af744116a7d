"""What optimizers make of blocks, each from a run: the table of docs/optimizers.md.

``python -m experiments.optimizers`` lets a :class:`SparseLinear` with masked blocks and a dense layer whose weight is
multiplied by the same mask see the same batches. An optimizer is *equal* if both end with the same weights in the
support. A fused step in several slices is held against the unfused one. Packages that are not installed are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.fused import layer_update, updating

STEPS = 6
TOLERANCE = 1e-5  # relative; some keep a part of their state in fewer bits than the weights' fp64

# package: class names, with arguments where the defaults do nothing in six steps
PACKAGES: dict[str, dict[str, dict[str, Any]]] = {
    "torch.optim": {
        "SGD": dict(lr=0.1, momentum=0.9, weight_decay=0.01), "ASGD": {}, "Adadelta": dict(lr=0.1),
        "Adagrad": dict(lr=0.1), "Adam": {}, "AdamW": {}, "Adamax": {}, "NAdam": {}, "RAdam": {}, "RMSprop": {},
        "Rprop": {}, "LBFGS": {}, "Adafactor": {}, "Muon": {},
    },
    "schedulefree": {"SGDScheduleFree": dict(lr=0.1), "AdamWScheduleFree": {}, "RAdamScheduleFree": {}},
    "lion_pytorch": {"Lion": {}},
    "prodigyopt": {"Prodigy": {}},
    "pytorch_optimizer": {
        name: {}
        for name in (
            "AdaBelief", "Adan", "ADOPT", "AdEMAMix", "Lion", "Tiger", "MADGRAD", "ScheduleFreeAdamW", "Prodigy",
            "StableAdamW", "Lamb", "LARS", "NovoGrad", "CAME", "SM3", "AdaFactor", "Shampoo", "SOAP", "Kron", "Muon",
        )
    },
}  # fmt: skip


class Row(NamedTuple):
    """What was found of one optimizer."""

    package: str
    name: str
    result: str
    masked: str
    fused: str


def pattern() -> es.BlockPattern:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((24, 20), generator=generator) < 0.6
    mask[:8] = True
    mask[8:16, :8] = False
    return es.BlockPattern.from_mask(mask, (8, 4))


class Dense(nn.Module):
    """The layer as a dense one, whose weight is multiplied by the mask."""

    def __init__(self, layer: es.SparseLinear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.mask = layer.pattern.to_mask()

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * self.mask).T


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Six steps of regression, by a closure where the optimizer is one that calls it."""
    generator = torch.Generator().manual_seed(1)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(STEPS):
        x, y = torch.randn((16, 20), generator=generator), torch.randn((16, 24), generator=generator)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            with updating(optimizer):
                loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def row(package: str, name: str, make: Callable[[Any], torch.optim.Optimizer]) -> Row:
    torch.manual_seed(0)
    layer = es.SparseLinear(20, 24, pattern(), bias=False)
    start = layer.values.detach().clone()
    dense, fused = Dense(layer), es.SparseLinear(20, 24, pattern(), bias=False)
    fused.load_state_dict(layer.state_dict())
    mask, support = layer.pattern.to_mask(), layer.pattern.support_of_blocks()
    assert support is not None
    try:
        torch.manual_seed(2)
        train(layer, make(layer.parameters()))
    except Exception as error:
        return Row(package, name, f"refused: {_short(error)}", "", "")
    try:
        torch.manual_seed(2)
        train(dense, make(dense.parameters()))
        apart = distance(layer.to_linear().weight.detach() * mask, dense.weight.detach() * mask)
        result = "equal" if apart < TOLERANCE else f"different ({apart:.0e})"
    except Exception as error:
        result = f"runs, while the dense layer is refused: {_short(error)}"
    if torch.equal(layer.values, start):
        result = "moves nothing"
    masked = "move" if bool((layer.values.detach()[~support] != 0).any()) else "stay zero"
    try:
        torch.manual_seed(2)
        train(fused, es.FusedOptimizer(fused, make))
        slices = distance(fused.values.detach(), layer.values.detach())
        inside = "equal" if slices < TOLERANCE else f"DIFFERENT ({slices:.0e})"
    except ValueError as error:
        inside = "refused" if "depends on its own gradient" in str(error) else f"refused: {_short(error)}"
    except Exception as error:
        inside = f"fails: {_short(error)}"
    return Row(package, name, result, masked, inside)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 100 else text[:97] + "..."


def rows() -> Iterator[Row]:
    layer_update.WORKSPACE_BYTES["cpu"] = 1024  # several slices
    for package, names in PACKAGES.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        for name, settings in names.items():
            kind = getattr(module, name, None)
            if kind is None:
                yield Row(package, name, "not there", "", "")
                continue

            def make(
                parameters: Any, kind: Any = kind, settings: Any = settings, name: str = f"{package}.{name}"
            ) -> Any:
                grouped = name == "pytorch_optimizer.Muon"  # which asks for a mark on each group
                return kind([{"params": [*parameters], "use_muon": True}] if grouped else parameters, **settings)

            yield row(package, name, make)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    versions = [f"torch {torch.__version__}"]
    for name in ("schedulefree", "lion-pytorch", "prodigyopt", "pytorch_optimizer"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    print(", ".join(versions) + "\n\n| package | optimizer | against the dense masked layer | masked entries | fused |")
    print("|---|---|---|---|---|")
    for one in rows():
        print("| " + " | ".join(one) + " |", flush=True)


if __name__ == "__main__":
    main()

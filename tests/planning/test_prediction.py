"""Each part of a prediction is what the embedded model then has; the model is left as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.embedding import Dilated, Full, Local, LowRank, Support, plan
from efcn_sparse.fused import updating
from efcn_sparse.models import resnet18, vanilla_cnn
from efcn_sparse.planning import Step, StepPlanner, StepPrediction, predict_step
from efcn_sparse.planning.fused_cost import OPTIMIZERS


class Residual(nn.Module):
    """What predictions must follow: a branch, normalization with buffers, pooling, a frozen layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 64, 1).requires_grad_(False)
        self.head = nn.Linear(64 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(x + torch.relu(self.third(self.second(x))), 2)
        return self.head(x.flatten(1))


class Viewed(nn.Module):
    """Needs feature maps that are contiguous, which the layers then copy."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).view(-1, 16 * 64))


NETS = {"vanilla": (vanilla_cnn, (3, 32, 32)), "residual": (Residual, (3, 6, 6)), "viewed": (Viewed, (3, 8, 8))}


def _step(net: str, support: Support, optimizer: str, fused: bool) -> tuple[StepPrediction, nn.Module, Any, int]:
    """The prediction, and the real model after two steps with its optimizer and the bytes it saved for backward."""
    make_net, size = NETS[net]
    cnn, x = make_net(), torch.randn(7, *size)
    predicted = predict_step(cnn, x, support=support, optimizer=optimizer, fused=fused)
    twin = es.embed(cnn, x, support=support)
    make, inside = OPTIMIZERS[optimizer].make, OPTIMIZERS[optimizer].inside
    stepper = (
        es.FusedOptimizer(twin, make, inside=inside)
        if fused or inside
        else make([p for p in twin.parameters() if p.requires_grad])
    )
    own = {tensor.data_ptr() for tensor in [*twin.parameters(), *twin.buffers(), x]}
    own |= {t.data_ptr() for m in twin.modules() if isinstance(m, es.SparseLinear) for t in m.pattern.structure}
    for _ in range(2):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        stepper.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = twin(x).square().mean()
        with updating(stepper):
            loss.backward()
        stepper.step()
    return predicted, twin, stepper, sum(size for place, size in saved.items() if place not in own)


_CASES = [
    ("vanilla", Local(), "sgd", False),
    ("vanilla", Dilated(1), "momentum", False),
    ("vanilla", Local(), "adamw", True),
    ("vanilla", Dilated(1), "momentum", True),
    ("vanilla", LowRank(8), "momentum", False),
    ("residual", LowRank(3, Dilated(1)), "adamw", True),
    ("residual", Local(), "adamw", False),
    ("residual", Local(), "sgd", True),
    ("residual", Local(), "sgd-inside", True),
    ("vanilla", Dilated(1), "sgd-inside", False),
    ("viewed", Local(), "adamw", False),
]


INDEX_ARRAYS = ("crow_indices", "col_indices", "mask_index", "masks")


@pytest.mark.parametrize(("net", "support", "optimizer", "fused"), _CASES)
def test_parts(net: str, support: Support, optimizer: str, fused: bool) -> None:
    predicted, twin, stepper, saved = _step(net, support, optimizer, fused)
    buffers = [buffer for name, buffer in twin.named_buffers() if not name.endswith(INDEX_ARRAYS)]  # are structure
    assert predicted.weights == sum(t.nbytes for t in [*twin.parameters(), *buffers])
    assert predicted.gradients == sum(p.grad.nbytes for p in twin.parameters() if p.grad is not None)
    state = [t for held in stepper.state.values() for t in held.values() if isinstance(t, Tensor) and t.dim()]
    assert predicted.optimizer == sum(t.nbytes for t in state)
    workspace = stepper.workspace_bytes if fused else 0
    assert workspace <= predicted.workspace <= 1.05 * workspace  # slices end with whole block rows
    assert predicted.inputs == 7 * math.prod(NETS[net][1]) * 4
    assert saved <= predicted.activations <= 1.2 * saved + 4096  # the output and the loss are held and not saved
    kept = predicted.inputs + predicted.weights + predicted.structure + predicted.optimizer + predicted.workspace
    assert predicted.peak >= kept + max(predicted.activations, predicted.gradients)


def test_flops() -> None:
    """Three products per layer, two for the first; the head's are counted from torch's own rules."""
    cnn, x = vanilla_cnn(), torch.randn(7, 3, 32, 32)
    predicted = predict_step(cnn, x)
    first, *rest = plan(cnn, x).layers
    products = 2 * first.local_weights + 3 * sum(layer.local_weights for layer in rest) + 3 * 64 * 10
    assert predicted.flops == 2 * 7 * products
    assert predict_step(cnn, torch.randn(14, 3, 32, 32)).flops == 2 * predicted.flops
    fused, inside = predict_step(cnn, x, fused=True), predict_step(cnn, x, optimizer="sgd-inside")
    assert predicted.flops == fused.flops == inside.flops
    assert (inside.workspace, fused.peak - inside.peak) == (0, fused.workspace)


def test_structure_is_about_what_is_held() -> None:
    cnn, x = vanilla_cnn(), torch.randn(1, 3, 32, 32)
    held = 0
    for module in es.embed(cnn, x).modules():
        if isinstance(module, es.SparseLinear):
            held += sum(t.nbytes for t in module.pattern.structure)
        if hasattr(module, "ties"):
            ties = module.ties
            parts = (ties.class_of_block, ties.maps, ties.class_starts, ties.blocks_by_class, ties.counts)
            held += sum(t.nbytes for t in parts)
    assert predict_step(cnn, x).structure == pytest.approx(held, rel=0.25)


def test_the_model_is_left_as_it_was() -> None:
    cnn = Residual()
    before, rng = copy.deepcopy(cnn.state_dict()), torch.get_rng_state()
    predict_step(cnn, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cnn.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in cnn.parameters())
    assert cnn.training


def test_terabytes_are_planned_without_memory() -> None:
    with torch.device("meta"):
        predicted = predict_step(resnet18(), torch.empty(4, 3, 224, 224), support=Full())
    assert predicted.weights > 1 << 40
    assert predicted.peak > predicted.weights + predicted.gradients


def test_bad_input() -> None:
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"^optimizer must be one of sgd, sgd-inside, momentum, adamw, got 'lion'$"):
        predict_step(vanilla_cnn(), x, optimizer="lion")
    with pytest.raises(TypeError, match=r"^batch must be a tensor or a tuple of tensors, got int; other arg"):
        predict_step(vanilla_cnn(), 3)
    frozen = vanilla_cnn().requires_grad_(False)
    message = r"^model must return floating-point tensors that need gradients, got an output without any$"
    with pytest.raises(ValueError, match=message):
        predict_step(frozen, x)


class Named(nn.Module):
    """Takes a dict, a keyword and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.idle = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, batch: dict[str, Tensor], times: int, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        y = self.conv(batch["x"]) * times
        return {"y": y if mask is None else y * mask}


def test_inputs_of_any_kind() -> None:
    """They are counted, and the batch of all of them is the batch."""
    model, x, mask = Named(), torch.randn(2, 3, 6, 6), torch.ones(2, 1, 1, 1)
    inputs: dict[str, Any] = dict(example_inputs=({"x": x}, 3), example_kwargs={"mask": mask}, leave_uncalled=True)
    predicted = predict_step(model, **inputs)
    assert predicted.inputs == x.nbytes + mask.nbytes
    planner = StepPlanner(model, **inputs)
    assert planner.predict(Step(Local(), 2)) == predicted
    assert planner.predict(Step(Local(), 8)).inputs == 4 * predicted.inputs
    assert planner.predict(Step(Local(), 8)).flops == 4 * predicted.flops

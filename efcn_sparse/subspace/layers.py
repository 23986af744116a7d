"""The embedded convolutions of a model, and their weights as blocks."""

from __future__ import annotations

from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.subspace.plan import Plan, plan_of, plan_of_bias


def embedded_layers(model: nn.Module) -> dict[str, EmbeddedConv]:
    """Every embedded convolution by name; one that is used under several names counts once, under the first."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, EmbeddedConv)}
    if not layers:
        raise ValueError(f"model holds no embedded convolution, got {type(model).__name__}: embed it first")
    for name, layer in layers.items():
        if layer.linear.values.is_meta:
            raise ValueError(f"model must hold numbers, got meta tensors in the embedded convolution {name!r}")
        if layer.ties.maps.device != layer.linear.values.device:
            raise ValueError(
                f"model must have ties and weights on one device, got {layer.ties.maps.device} and "
                f"{layer.linear.values.device} in the embedded convolution {name!r}"
            )
    return layers


def weight_blocks(layer: EmbeddedConv) -> tuple[Tensor, Plan]:
    """The stored blocks, and the plan to read them."""
    return layer.linear.values.detach(), plan_of(layer.ties)


def bias_blocks(layer: EmbeddedConv) -> tuple[Tensor, Plan] | None:
    """The bias as blocks ``[positions, 1, channels]`` that all copy the convolution's bias; None without one."""
    if layer.linear.bias is None:
        return None
    channels = layer.ties.kernel_shape[0]
    blocks = layer.linear.bias.detach().view(-1, 1, channels)
    return blocks, plan_of_bias(blocks.shape[0], channels, blocks.device)

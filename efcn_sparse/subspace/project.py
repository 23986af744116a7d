"""Back onto the CNN subspace, or onto the locally connected one."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import embedded_layers
from efcn_sparse.subspace.backends import resolve
from efcn_sparse.subspace.plan import SubspacePlan, bias_blocks, weight_blocks

_SUBSPACES = ("cnn", "lcn")


@torch.no_grad()
def project(model: nn.Module, onto: str, *, backend: str = "auto") -> nn.Module:
    """Move every embedded convolution to the nearest point of a subspace, in place.

    Args:
        model: any module that holds embedded convolutions, or layers such as :class:`LocallyConnected2d`; nothing else
            in it is changed, and no optimizer's state.
        onto: ``"lcn"``: off-local weights become zero, those of a low-rank part by its U; ``"cnn"``: local weights
            become the mean of their kernel entry's copies too, and biases their mean over positions, per channel.
        backend: ``"auto"``, or the name of a backend, which is then used or refused.

    Returns:
        ``model``.

    Law: an orthogonal projection: it is idempotent, and ``‖W‖² == ‖P W‖² + ‖W - P W‖²``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` holds no embedded convolution, or there is no subspace of that name.
        RuntimeError: the named backend cannot run here.

    Example:
        >>> import torch, efcn_sparse as es
        >>> twin = es.embed(torch.nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 2, 8, 8), support=es.Dilated(1))
        >>> with torch.no_grad():
        ...     _ = torch.nn.init.normal_(twin.linear.values)
        >>> d = es.deviation(es.project(twin, onto="cnn"))
        >>> d.untied, d.off_local
        (0.0, 0.0)
    """
    if onto not in _SUBSPACES:
        raise ValueError(f"onto must be 'cnn' or 'lcn', got {onto!r}")
    tie = onto == "cnn"
    work, layers = [], embedded_layers(model).values()
    for layer in layers:
        bias = bias_blocks(layer)
        work += [weight_blocks(layer)] if bias is None or not tie else [weight_blocks(layer), bias]
    runs = [resolve(backend, values.device, values.dtype) for values, _ in work]
    for run, (values, plan) in zip(runs, work, strict=True):
        project_tensor(values, plan, tie, run)
    for layer in layers:
        if layer.low_rank is not None:
            layer.low_rank.left.zero_()
    return model


def project_tensor(values: Tensor, plan: SubspacePlan, tie: bool, run: ModuleType | None = None) -> None:
    """Project ``values`` ``[nnz_blocks, block_rows, block_cols]`` in place: off-local entries go, copies are tied."""
    run = resolve("auto", values.device, values.dtype) if run is None else run
    packed = values.contiguous()
    run.project(packed, plan, tie)
    if packed is not values:
        values.copy_(packed)
    torch.autograd.graph.increment_version(values)  # a graph that saved the old values must not be walked any more

"""The layer's product, whose backward pass hands over the two factors of the gradient in place of the gradient."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.ops.checks import under_transforms
from efcn_sparse.ops.select import resolve
from efcn_sparse.pattern import BlockPattern

_NO_FULLGRAPH = (
    "FusedOptimizer updates weights in the backward pass, which cannot be compiled: use fullgraph=False, or detach() it"
)
_INSTEAD = "use a plain torch optimizer there"


class Gradient(NamedTuple):
    """The gradient of a layer's values, as the sum of its parts.

    Attributes:
        factors: pairs ``a`` ``[N, out_features]`` and ``b`` ``[N, in_features]``, one for each use of the layer, which
            stand for ``aᵀ b`` at the stored blocks.
        held: tensors like the values: what came from elsewhere than the layer's product, such as a penalty on the
            weights, or from earlier backward passes.
    """

    factors: tuple[tuple[Tensor, Tensor], ...]
    held: tuple[Tensor, ...]


class Update(Protocol):
    """What steps the values of one layer, given their gradient."""

    keeps_cast: bool  # the 16-bit copy that autocast makes, from forward to backward
    has_slices: bool  # at the place of the values
    group: dict[str, Any]  # the optimizer's parameter group, whose parameters are the values
    state: dict[str, Any]  # what the optimizer keeps for them

    def step(self, gradient: Gradient, scale: Tensor | None = None) -> None:
        """One step with ``scale`` (None: 1) times the gradient."""

    def squared_norm(self, gradient: Gradient) -> Tensor:
        """fp64 scalar: the squared norm of the gradient at the stored blocks."""

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """See :class:`efcn_sparse.linear.Product`."""


class UpdatingProduct:
    """The product of a layer whose values are updated in the backward pass while ``armed()``.

    Without that its derivatives are those of the plain product. The gradient is complete when it comes to the node that
    would accumulate it: every use of the layer, and of its values elsewhere, has delivered by then.
    """

    _uncompiled: ClassVar[Callable[[UpdatingProduct, Tensor], Tensor] | None] = None

    def __init__(
        self,
        name: str,
        layer: SparseLinear,
        update: Update,
        armed: Callable[[], bool],
        take: Callable[[UpdatingProduct, Gradient], None],
    ) -> None:
        if UpdatingProduct._uncompiled is None:  # not at import: it imports torch._dynamo, and Triton with that
            UpdatingProduct._uncompiled = torch.compiler.disable(UpdatingProduct._product, reason=_NO_FULLGRAPH)
        self.name, self.layer, self.update = name or "model", layer, update
        self.done = False  # whether the values have had their gradient since the last step
        self._armed, self._take = armed, take
        self._factors: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the backward pass
        self._values = layer.values
        self._watch()

    def _watch(self) -> None:
        """Be called where the gradient of the values, where they are now, would be accumulated."""
        values = self._values
        trains = values.requires_grad
        values.requires_grad_(True)
        self._node = get_gradient_edge(values).node  # kept, since the parameter would not keep it
        values.requires_grad_(trains)
        self._place = values.data_ptr()
        here = weakref.ref(self)  # a cycle through the node would never be collected

        def arrived(gradients: tuple[Tensor | None, ...]) -> tuple[None] | None:
            product = here()
            return None if product is None else product._arrived(gradients)

        self._hook = self._node.register_prehook(arrived)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()  # a copy of the layer, and a file of it, is an ordinary layer

    def __call__(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            assert self._uncompiled is not None
            return self._uncompiled(x)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        values = self.layer.values
        own = values.is_leaf and isinstance(values, nn.Parameter)  # functional_call brings others
        if not (own and values.requires_grad) or under_transforms():
            return spmm(x, values, self.layer.pattern, bias=self.layer.bias, backend=self.layer.backend)
        refuse_data_parallel(self.name)
        self.check_place()
        layer, copy = self.layer, None
        if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))  # as the operation would, but saved as it is multiplied
            if self.update.keeps_cast and layer.values.dtype == torch.float32:
                copy = layer.values.detach().to(x.dtype)
        y: Tensor = FusedProduct.apply(x, layer.values, layer.bias, copy, self)
        return y

    def check_place(self) -> None:
        """Raise ``RuntimeError`` if the values were replaced since the optimizer was made, or moved from the slices."""
        moved = self._values.data_ptr() != self._place
        if self.layer.values is self._values and moved and not self.update.has_slices:
            self._watch()
        elif self.layer.values is not self._values or moved:
            raise RuntimeError(
                f"{self.name}: values must stay where they were when FusedOptimizer was made; "
                "move or convert the model first, then make the optimizer"
            )

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """See :class:`efcn_sparse.linear.Product`."""
        commit, place = self.update.follow(pattern, source, values), values.data_ptr()

        def moved() -> None:
            commit()
            self._place = place

        return moved

    def forget(self) -> None:
        """Drop what backward passes that did not end have left."""
        self._factors.clear()

    def remove(self) -> None:
        """Make the layer an ordinary one."""
        self._hook.remove()
        self.layer.product = None

    # -- backward ----------------------------------------------------------------------------------------------

    def wanted(self) -> str:
        """What the backward pass that runs wants of the values: ``"accumulate"``, ``"return"`` or ``"nothing"``."""
        try:
            return "accumulate" if torch._C._will_engine_execute_node(self._node) else "nothing"
        except RuntimeError:  # torch.autograd.grad with respect to the values
            return "return"

    def keep(self, a: Tensor, b: Tensor) -> bool:
        """Keep the factors until the gradient is complete; whether that is what the backward pass wants."""
        if not self._armed() or torch.is_grad_enabled() or self.wanted() != "accumulate":
            return False
        self._factors.setdefault(torch._C._current_graph_task_id(), []).append((a, b))
        return True

    def _arrived(self, gradients: tuple[Tensor | None, ...]) -> tuple[None] | None:
        """All parts of the gradient are here: what came as a tensor, and the factors that were kept."""
        factors = tuple(self._factors.pop(torch._C._current_graph_task_id(), ()))
        (gradient,) = gradients
        if not self._armed() or (gradient is None and not factors) or torch.is_grad_enabled():
            return None
        if self.done:
            raise RuntimeError(
                f"{self.name}: must get one gradient between two steps inside updating(), got a second one; call "
                "step() after each. To accumulate, run all backward passes but the last outside of updating()"
            )
        self.done, before = True, self._values.grad
        self._values.grad = None
        self._take(self, Gradient(factors, tuple(part for part in (gradient, before) if part is not None)))
        return (None,)


class FusedProduct(torch.autograd.Function):
    """``x Wᵀ + bias``; backward gives the factors of the gradient of W, ``dyᵀ x``, to the product.

    ``copy`` are the values in the dtype of x where theirs is another and the copy is to serve both products, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, copy: Tensor | None, product: UpdatingProduct
    ) -> Tensor:
        ctx.save_for_backward(x, copy if ctx.needs_input_grad[0] else None)
        ctx.product, ctx.version = product, values._version
        layer = product.layer
        return spmm(x, values.detach() if copy is None else copy, layer.pattern, bias=bias, backend=layer.backend)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, copy = ctx.saved_tensors
        product = ctx.product
        layer = product.layer
        if layer.values._version != ctx.version:
            raise RuntimeError(
                f"{product.name}: values were updated since the forward pass; inside updating() the forward pass must "
                "come after the last step, and its graph can be used once"
            )
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            values = copy
            if copy is None or torch.is_grad_enabled():  # under autocast a copy, as in the forward pass
                values = layer.values.to(dy.dtype)
            dx = spmm(dy, values, layer.pattern, transpose=True, backend=layer.backend)
        batch = math.prod(x.shape[:-1])
        a, b = dy.reshape(batch, dy.shape[-1]), x.reshape(batch, x.shape[-1])
        if not product.keep(a, b) and product.wanted() != "nothing":
            dvalues = sddmm(a, b, layer.pattern, backend=layer.backend)
        dbias = _column_sums(a, layer.backend) if ctx.needs_input_grad[2] else None
        return dx, dvalues, dbias, None, None


def _column_sums(a: Tensor, backend: str) -> Tensor:
    """``a.sum(0)``, bit for bit as the backward pass of a layer without a fused optimizer computes it."""
    if torch.is_grad_enabled() or type(a) is not Tensor or resolve(backend, a.device, a.dtype) != "cpu":
        return a.sum(0)
    return torch.ops.efcn_sparse_cpu.column_sums(a.contiguous())


# -- where an update inside backward would go wrong in silence -----------------------------------------------------


def layers_of(model: nn.Module) -> dict[str, SparseLinear]:
    """The sparse layers of ``model`` by name, or ``ValueError`` if one of them cannot be given another product."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not any(layer.values.requires_grad for layer in layers.values()):
        raise ValueError(f"model must hold a SparseLinear that trains, got {type(model).__name__} without one")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if layer.product is not None:
            raise ValueError(f"{name or 'model'}: must have no fused optimizer yet; detach() the other one first")
        refuse_sharded(name or "model", layer.values)
        other = owners.setdefault(id(layer.values), name)
        if other != name:
            raise ValueError(f"{name or 'model'}: must have values of its own, got those of {other or 'model'}")
    return layers


def refuse_sharded(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` unless ``values`` are a plain tensor, all of it in this process."""
    if type(values.detach()) is not Tensor:
        kind = type(values.detach()).__name__
        raise ValueError(f"{name}: values must be a plain tensor for a fused optimizer, got {kind}; {_INSTEAD}")


def refuse_data_parallel(name: str) -> None:
    """Raise ``RuntimeError`` inside the forward pass of ``DistributedDataParallel``."""
    if getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
        raise RuntimeError(
            f"{name}: must not run inside DistributedDataParallel with a fused optimizer, whose gradients are used "
            f"before they could be averaged; {_INSTEAD}"
        )

"""Tensor parallelism: each process holds, multiplies and trains a run of a layer's blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from efcn_sparse.distributed.data_parallel import check_same_patterns
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import spmm
from efcn_sparse.pattern import BlockPattern


class BlockRowParallel(ParallelStyle):
    """Divides the blocks of sparse layers among processes: a plan for ``torch.distributed.tensor.parallel``.

    ``values`` become a :class:`DTensor` with ``Shard(0)``. Blocks are stored in the order of block rows, so each
    process holds a run of them, of ``ceil(nnz_blocks / processes)`` blocks; its first and last row may be shared with
    its neighbors. It multiplies all of ``x`` by its blocks, and the results are summed. Gradients and optimizer state
    are divided alike by themselves. ``bias`` and all other parameters stay plain tensors, the same on every process.

    What travels: each layer sums ``y`` over the processes in the forward pass, and the gradient of ``x`` in backward.

    The plan may be given for a :class:`SparseLinear`, or for any module with sparse layers in it, such as an embedded
    convolution or the whole model; layouts other than the defaults are for a :class:`SparseLinear` alone. Every process
    must hold the same patterns, which is checked. ``values`` and ``bias`` come from the first process, or from each
    one's own copy with ``src_data_rank=None``. Make the optimizer afterwards, since ``values`` is a new parameter.

    Args:
        input_layouts: the placement of ``x`` when it comes as a plain tensor; ``Replicate()`` when None.
        output_layouts: the placement that ``y`` shall have; ``Replicate()`` when None.
        use_local_output: whether ``y`` is a plain tensor, this process's part of it, rather than a :class:`DTensor`.

    Law: forward, backward and training are those of one process, up to the order of sums.

    Raises:
        ValueError: the module has no sparse layer; patterns differ between processes; the mesh has more than one
            dimension; ``values`` are sharded already; or a layout does not fit the module.
        NotImplementedError: a layer has a fused optimizer, or is a convolution with a low-rank part.

    Example:
        >>> import torch.distributed as dist, efcn_sparse as es
        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = dist.init_device_mesh("cpu", (1,))
        >>> layer = es.SparseLinear(8, 6, es.BlockPattern.dense((6, 8), (2, 4)))
        >>> layer = parallelize_module(layer, mesh, es.distributed.BlockRowParallel())
        >>> layer(torch.randn(3, 8)).shape, layer.values.placements
        (torch.Size([3, 6]), (Shard(dim=0),))
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        self.input_layouts = (input_layouts or Replicate(),)
        self.output_layouts = (output_layouts or Replicate(),)
        self.use_local_output = use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layers = {name: part for name, part in module.named_modules() if isinstance(part, SparseLinear)}
        self._check(module, layers, device_mesh)
        check_same_patterns(module, device_mesh.get_group())
        for layer in layers.values():
            self._divide(layer, device_mesh)
        return module

    def _check(self, module: nn.Module, layers: dict[str, SparseLinear], mesh: DeviceMesh) -> None:
        if mesh.ndim != 1:
            raise ValueError(f"device_mesh must have one dimension, such as mesh['tp'], got {mesh}")
        if not layers:
            raise ValueError(f"module must hold a SparseLinear, got {type(module).__name__} without one")
        for name, part in module.named_modules():
            if getattr(part, "low_rank", None) is not None:  # of an embedded convolution
                raise NotImplementedError(
                    f"{name or type(part).__name__}: has a low-rank part, which multiplies by all stored blocks"
                )
        plain = (Replicate(),)
        if not isinstance(module, SparseLinear) and not (
            self.input_layouts == self.output_layouts == plain and self.use_local_output
        ):
            raise ValueError(f"{self} must be given for a SparseLinear itself, got {type(module).__name__}")
        for name, layer in layers.items():
            name = name or type(layer).__name__
            if type(layer.values.detach()) is not Tensor:
                raise ValueError(f"{name}: values must be a plain tensor, got {type(layer.values.detach()).__name__}")
            if type(layer) is not SparseLinear:
                raise ValueError(f"{name}: must be a SparseLinear and no subclass, got {type(layer).__name__}")
            if layer.product is not None:
                raise NotImplementedError(
                    f"{name}: has a fused optimizer, which needs all of values; detach() it first"
                )

    def _divide(self, layer: SparseLinear, mesh: DeviceMesh) -> None:
        values = distribute_tensor(layer.values, mesh, [Shard(0)], src_data_rank=self.src_data_rank)
        if layer.bias is not None and self.src_data_rank is not None:
            whole = distribute_tensor(layer.bias, mesh, [Replicate()], src_data_rank=self.src_data_rank)
            with torch.no_grad():
                layer.bias.copy_(whole.to_local())
        total, mine = layer.pattern.nnz_blocks, values.to_local().shape[0]
        first = min(mesh.get_local_rank() * -(-total // mesh.size()), total)
        layer.values = nn.Parameter(values, requires_grad=layer.values.requires_grad)
        layer.__class__ = DividedLinear  # in place, since parallelize_module keeps the module; FSDP2 does the same
        assert isinstance(layer, DividedLinear)
        layer.own_pattern, layer.style = run_of_blocks(layer.pattern, first, first + mine), self

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(input_layouts={self.input_layouts}, output_layouts={self.output_layouts}, "
            f"use_local_output={self.use_local_output})"
        )


class DividedLinear(SparseLinear):
    """A :class:`SparseLinear` whose blocks :class:`BlockRowParallel` has divided; it is not made otherwise.

    Attributes:
        pattern: of the whole layer, which also the state dict holds.
        own_pattern: of this process's blocks.
        style: the layouts of input and output.
    """

    own_pattern: BlockPattern
    style: BlockRowParallel

    def forward(self, x: Tensor) -> Tensor:
        self.check_pattern()
        values, style = self.values, self.style
        assert isinstance(values, DTensor)
        mesh = values.device_mesh
        placed = x if isinstance(x, DTensor) else DTensor.from_local(x, mesh, style.input_layouts)
        whole = placed.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        part = spmm(whole, values.to_local(), self.own_pattern, backend=self.backend)
        y: Tensor = DTensor.from_local(part, mesh, [Partial()]).redistribute(placements=style.output_layouts)
        if self.bias is not None:
            y = y + DTensor.from_local(self.bias.to(part.dtype), mesh, [Replicate()])  # autocast narrows part alone
        assert isinstance(y, DTensor)
        # a clone, since nn.ReLU(inplace=True) is refused on the view that to_local() gives
        return y.to_local().clone() if style.use_local_output else y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DividedLinear:
        super()._apply(fn, recurse)
        self.own_pattern = self.own_pattern.to(self.values.device)
        return self


def run_of_blocks(pattern: BlockPattern, first: int, last: int) -> BlockPattern:
    """The pattern of the blocks ``values[first:last]``, in the same matrix; all other block rows are empty.

    Law: W is the sum of the W of the runs that ``values`` is cut into.

    Example:
        >>> run_of_blocks(BlockPattern.dense((4, 4), (2, 2)), 1, 3).to_mask().int()
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1],
                [1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    return BlockPattern.from_bsr(
        pattern.crow_indices.to(torch.int64).clamp(first, last) - first,
        pattern.col_indices[first:last],
        pattern.shape,
        pattern.block_shape,
        mask_index=pattern.mask_index[first:last],
        masks=pattern.masks,
    )

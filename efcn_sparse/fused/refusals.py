"""Where an update inside backward would go wrong in silence: several processes that average gradients."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

_INSTEAD = "use a plain torch optimizer there"


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

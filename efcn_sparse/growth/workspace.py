"""How much memory a pass over the gradient takes, whatever the size of the layer."""

from __future__ import annotations

import torch

_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


def workspace_bytes(device: torch.device) -> int:
    """The bytes that tiles of the gradient, or of its Gram matrices, may take at a time."""
    return _BYTES.get(device.type, _BYTES["cuda"])

"""What autograd holds for the backward pass of a call."""

import pytest
import torch

from efcn_sparse import extension_status

compiled = pytest.mark.skipif(not extension_status().available, reason="without the extension, torch's own modules run")


def held_bytes(call):
    held = []

    def pack(saved):
        held.append(saved.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        call()
    return sum(held)

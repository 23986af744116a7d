"""What autograd holds for the backward pass of a call."""

import torch


def held_bytes(call):
    held = []

    def pack(saved):
        held.append(saved.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        call()
    return sum(held)

"""Bytes of a layer's weights, and of what loading them from another memory order, and reading them, takes on top."""

import torch

import efcn_sparse as es
from efcn_sparse.measure.memory import peak_bytes, settle


def main():
    """Print the three numbers."""
    torch.set_num_threads(1)
    small = es.LocallyConnected2d(8, 16, 4, 3)
    small.load_weight(small.weight)  # what a first call loads does not count
    layer = es.LocallyConnected2d(16, 32, 24, 5)
    weight = torch.randn(20, 20, 16, 5, 5, 32).movedim(-1, 2)
    before = settle()
    layer.load_weight(weight)
    load = peak_bytes() - before
    del weight
    before = settle()
    layer.weight.sum()
    print(layer.linear.values.nbytes, load, peak_bytes() - before)


if __name__ == "__main__":
    main()

"""Train a CNN on handwritten digits, embed it as a fully-connected network, and watch it leave the CNN subspace.

    pip install 'efcn-sparse[digits]'
    python examples/leave_the_cnn.py --steps 200

Prints accuracy on digits that were not trained on, and δ, the share of the weights' norm that no CNN could have.
"""

import argparse

import torch
from torch import Tensor, nn

import efcn_sparse as es

Data = tuple[Tensor, Tensor]


def digits() -> tuple[Data, Data]:
    """1797 real digits of 8×8 pixels from scikit-learn, as ``(train, test)`` of ``(images, labels)``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return (images[train], labels[train]), (images[test], labels[test])


def train(model: nn.Module, data: Data, steps: int, lr: float) -> None:
    """Plain SGD on batches of 100."""
    images, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(len(labels), (100,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of right answers."""
    images, labels = data
    return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """CNN, its embedding, the embedding trained on, and the nearest CNN to that."""
    parser = argparse.ArgumentParser(description="A CNN that leaves its subspace.")
    parser.add_argument("--steps", type=int, default=200, help="steps of SGD before the embedding, and after it")
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    training, testing = digits()
    cnn = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip
    train(cnn, training, steps, lr=0.1)
    print(f"CNN trained:          accuracy {accuracy(cnn, testing):.3f}")

    efcn = es.embed(cnn, training[0][:2], support=es.Dilated(1))
    print(f"embedded as eFCN:     accuracy {accuracy(efcn, testing):.3f}, δ = {es.deviation(efcn).delta:.4f}")

    train(efcn, training, steps, lr=0.1)
    away = es.deviation(efcn)
    print(f"eFCN trained on:      accuracy {accuracy(efcn, testing):.3f}, δ = {away.delta:.4f}")
    print(f"  norms: tied {away.tied:.3f}, untied {away.untied:.3f}, off-local {away.off_local:.3f}")

    print(f"the nearest CNN:      accuracy {accuracy(es.unembed(efcn), testing):.3f}")


if __name__ == "__main__":
    main()

"""Learn which far-away pixels matter: off-local blocks that move to where the gradient is large.

    python examples/grow_blocks.py --steps 300

A convolution must answer, at each place of an image, with its own pixel and with that of one far-away place, which is
another one for each and drawn at random. No receptive field holds it. Four supports learn it, and what each stores,
ignores and reaches is printed.
"""

import argparse

import torch
from torch import Tensor, nn

import efcn_sparse as es

SIDE, CHANNELS = 12, 4
SUPPORTS = (es.Local(), es.Dilated(2), es.Grown(3.0), es.Full())


def batch(partners: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Images, and what to answer: each pixel and a third of its partner's."""
    x = torch.randn((64, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return x, x + x.flatten(2)[:, :, partners].view_as(x) / 3


def learn(support: es.embedding.Support, partners: Tensor, steps: int) -> tuple[int, float, float]:
    """Stored weights, the loss in the end, and the share of the squared gradient that falls outside the support."""
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False))
    layers = {"*": dict(support=support, block_shape=(CHANNELS, CHANNELS))}
    net = es.embed(cnn, torch.zeros(1, CHANNELS, SIDE, SIDE), layers=layers)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    growth = es.Growth(net, optimizer, every=20, until=steps) if isinstance(support, es.Grown) else None
    for step in range(steps):
        x, target = batch(partners, step)
        optimizer.zero_grad()
        with growth.watch() if growth else torch.enable_grad(), es.record_leak(net) as leak:
            loss = (net(x) - target).square().mean()
            loss.backward()
        optimizer.step()
        if growth:
            growth.step()
    return net[0].linear.values.numel(), loss.item(), leak.share


def main() -> None:
    """One line for each support."""
    parser = argparse.ArgumentParser(description="Off-local blocks that move to where the gradient is large.")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam")
    steps = parser.parse_args().steps
    partners = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(7))
    print(f"{'support':<10}  {'weights':>8}  {'loss':>8}  {'ignored share of the gradient':>29}")
    for support in SUPPORTS:
        weights, loss, share = learn(support, partners, steps)
        print(f"{support!s:<10}  {weights:>8,}  {loss:>8.4f}  {share:>29.4f}")


if __name__ == "__main__":
    main()

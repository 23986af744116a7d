"""A small character-level transformer whose MLPs are block-sparse, trained on text that every Python carries.

    python examples/sparse_transformer.py --density 0.25

Prints the loss of the dense model and of the same model with `es.sparsify`, and how many weights each has in its MLPs.
"""

import argparse
import copy
import inspect
import random

import torch
from torch import Tensor, nn

import efcn_sparse as es

CONTEXT, WIDTH, HEADS = 64, 128, 4
MLP = "*.mlp.*"


class Block(nn.Module):
    """Causal attention and an MLP, each with its residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.before_attention(x)
        x = x + self.attention(h, h, h, attn_mask=self.causal, is_causal=True, need_weights=False)[0]
        return x + self.mlp(self.before_mlp(x))


class Transformer(nn.Module):
    """Characters ``[batch, CONTEXT]`` to logits of the next one ``[batch, CONTEXT, vocabulary]``."""

    def __init__(self, vocabulary: int, depth: int = 2) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.head = nn.Linear(WIDTH, vocabulary)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.blocks(self.characters(text) + self.positions.weight))


def train(model: nn.Module, text: Tensor, steps: int) -> float:
    """Train with AdamW; the mean cross-entropy in nats of the last ten steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (16,), generator=generator)
        window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


def mlp_weights(model: Transformer) -> int:
    """How many weights the MLPs store."""
    return sum(p.numel() for block in model.blocks for p in block.mlp.parameters() if p.dim() > 1)


def main() -> None:
    """Train the dense and the sparse model on the source of Python's `random` module."""
    parser = argparse.ArgumentParser(description="A transformer with block-sparse MLPs.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--density", type=float, default=0.25, help="share of the MLPs' blocks that is kept")
    arguments = parser.parse_args()

    source = inspect.getsource(random)
    alphabet = sorted(set(source))
    text = torch.tensor([alphabet.index(character) for character in source])

    torch.manual_seed(0)
    dense = Transformer(len(alphabet))
    sparse = es.sparsify(copy.deepcopy(dense), {MLP: dict(density=arguments.density, block_shape=(32, 32))})
    for name, model in (("dense", dense), ("sparse", sparse)):
        loss = train(model, text, arguments.steps)
        print(f"{name:>6}: {mlp_weights(model):7,} MLP weights, loss {loss:.3f} nats after {arguments.steps} steps")


if __name__ == "__main__":
    main()

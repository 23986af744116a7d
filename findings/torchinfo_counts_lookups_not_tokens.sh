#!/usr/bin/env bash
# torchinfo 1.8.0 (the newest on PyPI) with torch 2.13.0: "Total mult-adds" of a summary, total_mult_adds.
#
# Expected: the multiplications of a forward pass with the given input; "# of operations (Mult-Adds)", as the README has
# it. Layers of the same arithmetic count the same.
# Seen: exact for convolutions, and not for the rest, without a word. (1) nn.Linear counts its weights once for each
# item of the batch, however many tokens that has: 4096 for 512 tokens of width 64, where the same layer as a Conv1d of
# size 1 counts 2,097,152. (2) nn.Embedding counts all of its table as if it were multiplied. (3) nn.MultiheadAttention
# is 0. A small GPT comes out at 13 million, with 1, 16 or 256 tokens: half is the table, nearly all else the head. True
# for 256 tokens are 1.8 billion. (4) A transposed convolution counts each weight for each output, stride² times too
# many. (5) nn.LSTMCell counts its width times too much, and so does nn.LSTM without a batch. (6) Layers with
# weight_norm or another parametrization are 0, and so are products with a parameter of one's own.
# Token mixers and attention look free beside convolutions, a larger vocabulary looks like work, and pruning the
# vocabulary like a speedup.
# Issue 226 (open) has (1) for a ViT; a pull request for nn.Linear (318) was merged in 2024, and there is no release. We
# found no issue of (2) and (4) to (6). The documentation has no rules. FlopCounterMode of torch on "meta", halved, is
# right, and serves as the truth here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchinfo==1.8.0 torch==2.13.0 numpy
OMP_NUM_THREADS=2 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy
from importlib.metadata import version

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary


def mult_adds(module, x):
    return summary(copy.deepcopy(module), input_data=x, verbose=0).total_mult_adds


def true_ones(module, x):
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(module).to("meta")(x.to("meta"))
    return counter.get_total_flops() // 2


class Product(nn.Module):
    """A product with a parameter of its own."""

    def __init__(self, width):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        return x @ self.mixing


class SmallGPT(nn.Module):
    def __init__(self, words=50257, width=128):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x):
        return self.head(self.body(self.embedding(x)))


print(*(f"{name} {version(name)}" for name in ("torchinfo", "torch")))
torch.manual_seed(0)
WIDTH, TOKENS = 64, 512
tokens, rows, image = torch.randn(1, TOKENS, WIDTH), torch.randn(TOKENS, WIDTH), torch.randn(1, 8, 10, 10)
linear = nn.Linear(WIDTH, WIDTH, bias=False)
normed, normed_conv = (
    parametrizations.weight_norm(layer) for layer in (copy.deepcopy(linear), nn.Conv2d(8, 8, 3, bias=False))
)
MHA = nn.TransformerEncoderLayer(WIDTH, 4, WIDTH, bias=False, batch_first=True)
VECTOR = 4 * WIDTH**2 + 2 * TOKENS * WIDTH  # of attention, for a token: projections, and scores with their sums
WRONG = {  # what is counted, and the truth as a multiple of it
    "Linear, 512 tokens": (linear, tokens, WIDTH**2, TOKENS),
    "ConvTranspose2d, stride 4": (nn.ConvTranspose2d(8, 8, 4, 4, bias=False), image, 16 * 100 * 8 * 8 * 16, 1 / 16),
    "LSTMCell": (nn.LSTMCell(WIDTH, WIDTH, bias=False), rows, TOKENS * 8 * WIDTH**3, 1 / WIDTH),
    "LSTM, no batch": (nn.LSTM(WIDTH, WIDTH, bias=False), rows, TOKENS * 8 * WIDTH**3, 1 / WIDTH),
    "weight_norm of Linear": (normed, rows, 0, None),
    "weight_norm of Conv2d": (normed_conv, image, 0, None),
    "own parameter": (Product(WIDTH), rows, 0, None),
}
RIGHT = {
    "Linear, 512 rows": (linear, rows),
    "Conv1d of size 1, 512 tokens": (nn.Conv1d(WIDTH, WIDTH, 1, bias=False), tokens.mT),
    "Conv2d": (nn.Conv2d(8, 16, 3, stride=2, bias=False), image),
    "Conv2d, 4 groups": (nn.Conv2d(8, 16, 3, groups=4, bias=False), image),
    "LSTM, a batch": (nn.LSTM(WIDTH, WIDTH, bias=False, batch_first=True), tokens),
}
for name, (module, x, expected, factor) in WRONG.items():
    counted, true = mult_adds(module, x), true_ones(module, x)
    print(f"{name:29}: {counted} of {true}")
    assert counted == expected, "the behavior has changed: " + name
    assert true > 0 and (factor is None or true == expected * factor)
for name, (module, x) in RIGHT.items():
    counted, true = mult_adds(module, x), true_ones(module, x)
    print(f"{name:29}: {counted} of {true}")
    assert counted == true
assert torch.allclose(
    nn.functional.conv1d(tokens.mT, linear.weight[..., None]).mT, linear(tokens), atol=1e-5
)  # the same layer

for words in (100, 50000):
    module, x = nn.Embedding(words, WIDTH), torch.zeros(1, TOKENS, dtype=torch.long)
    counted = mult_adds(module, x)
    print(f"Embedding of {words} words: {counted} of {true_ones(module, x)}")
    assert counted == words * WIDTH and true_ones(module, x) == 0, "the behavior has changed: embeddings"

counted, true = mult_adds(MHA, tokens), true_ones(MHA, tokens)
print(f"TransformerEncoderLayer: {counted} of {true}")
assert counted == 2 * WIDTH**2 + 2 * WIDTH, "the behavior has changed: attention"  # two linear layers, two norms
assert true == TOKENS * (VECTOR + 2 * WIDTH**2)

net, counts = SmallGPT(), []
for length in (1, 16, 256):
    x = torch.zeros(1, length, dtype=torch.long)
    counts.append(mult_adds(net, x))
    print(f"a small GPT, {length} tokens: {counts[-1]} of {true_ones(net, x)}")
table = net.embedding.weight.numel()
print(f"of it the table: {table / counts[-1]:.0%}, table and head: {2 * table / counts[-1]:.0%}")
assert len(set(counts)) == 1, "the behavior has changed: tokens count"
assert 0.95 < 2 * table / counts[-1] < 1 and true_ones(net, x) > 130 * counts[-1]
PYTHON

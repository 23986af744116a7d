#!/usr/bin/env bash
# torch 2.13.0 on a CPU (x86-64): torch.utils.flop_counter.FlopCounterMode around attention, nn.LSTM
# and products with a vector.
#
# Expected: a layer counts the products that it computes, in training and in evaluation, on the CPU as elsewhere; and
# what the counter does not know raises or warns.
# Seen: operators without a formula count as 0, silently, and those of the CPU's fast paths have none. (1) The products
# of scaled_dot_product_attention are missing, forward and backward, so the count of a Transformer in training grows
# linearly with the context: 32% of it is left at 1024 tokens and a width of 128. nn.MultiheadAttention has them with
# need_weights=True (the default) and not with False. (2) In evaluation mode under no_grad a Transformer encoder is 0
# altogether. (3) nn.LSTM is 0, in training as well, while nn.GRU, nn.RNN and nn.LSTMCell count. (4) W @ v is 0 and
# v @ W is not; x @ v, torch.addmv, torch.addbmm and nn.Bilinear are 0.
# Utilization (MFU) and the cost of a longer context come out too low, and a comparison of an LSTM with a GRU, or of a
# Transformer with a CNN, is decided by what is missing.
# The documentation of 2.13 is silent; that of 2.14 has "unsupported operations contribute zero FLOPs", and not which.
# Issue 195460 (closed) has (1), and 2.15.0 counts it; (2) to (4) are the same there. Counted on the device "meta",
# (1) to (3) are right, and nothing is computed; so they are with sdpa_kernel(SDPBackend.MATH),
# torch.backends.mha.set_fastpath_enabled(False) and mkldnn off. For (4) write v as a matrix of one column; a
# custom_mapping adds a formula.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
OMP_NUM_THREADS=2 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops(call, **options):
    with FlopCounterMode(display=False, **options) as counter:
        call()
    return counter.get_total_flops()


@contextlib.contextmanager
def plain():
    """Without the fast paths."""
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        yield
    torch.backends.mha.set_fastpath_enabled(True)


print("torch", torch.__version__)
BATCH, TOKENS, WIDTH, HEADS = 2, 64, 32, 4
SCORES = 2 * 2 * BATCH * TOKENS**2 * WIDTH  # queries by keys, and weights by values, of all heads
PROJECTIONS = 4 * 2 * BATCH * TOKENS * WIDTH**2  # three going in, one going out
FEEDFORWARD = 2 * 2 * BATCH * TOKENS * WIDTH * 2 * WIDTH
RECURRENT = 2 * 2 * BATCH * TOKENS * WIDTH**2  # of one gate: an input and a state by their weights


def layers(device):
    """Calls by name, and what they cost."""
    with torch.device(device):
        x = torch.randn(BATCH, TOKENS, WIDTH)
        heads = torch.randn(BATCH, HEADS, TOKENS, WIDTH // HEADS)
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        lstm, gru, rnn = (kind(WIDTH, WIDTH, batch_first=True) for kind in (nn.LSTM, nn.GRU, nn.RNN))
        cell = nn.LSTMCell(WIDTH, WIDTH)

    def evaluated():
        with torch.no_grad():
            encoder.eval()(x)
        encoder.train()

    return {
        "scaled_dot_product_attention": (lambda: F.scaled_dot_product_attention(heads, heads, heads), SCORES),
        "MultiheadAttention": (lambda: attention(x, x, x), PROJECTIONS + SCORES),
        "  need_weights=False": (lambda: attention(x, x, x, need_weights=False), PROJECTIONS + SCORES),
        "TransformerEncoder, training": (lambda: encoder.train()(x), 2 * (PROJECTIONS + SCORES + FEEDFORWARD)),
        "  evaluation, no_grad": (evaluated, 2 * (PROJECTIONS + SCORES + FEEDFORWARD)),
        "LSTM": (lambda: lstm(x), 4 * RECURRENT),
        "GRU": (lambda: gru(x), 3 * RECURRENT),
        "RNN": (lambda: rnn(x), RECURRENT),
        "LSTMCell": (lambda: cell(x[:, 0]), 4 * RECURRENT // TOKENS),
    }


seen = {
    "scaled_dot_product_attention": 0,
    "  need_weights=False": PROJECTIONS,
    "TransformerEncoder, training": 2 * (PROJECTIONS + FEEDFORWARD),
    "  evaluation, no_grad": 0,
    "LSTM": 0,
}
on_meta = layers("meta")
for name, (call, true) in layers("cpu").items():
    counted = flops(call)
    print(f"{name:29}: {counted} of {true}")
    assert counted == seen.get(name, true), "the behavior has changed: " + name
    assert flops(on_meta[name][0]) == true
    with plain():
        assert flops(call) == true

# The same numbers are computed, whatever is counted.
x = torch.randn(BATCH, TOKENS, WIDTH)
attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
assert torch.allclose(attention(x, x, x)[0], attention(x, x, x, need_weights=False)[0], atol=1e-5)

# Training: forward and backward
heads = torch.randn(BATCH, HEADS, TOKENS, WIDTH // HEADS, requires_grad=True)
lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
for name, call in {
    "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(heads, heads, heads).sum().backward(),
    "LSTM": lambda: lstm(x)[0].sum().backward(),
}.items():
    counted = flops(call)
    with plain():
        without = flops(call)
    print(f"{name}, forward and backward: {counted} of {without}")
    assert counted == 0 and without > 2 * on_meta[name][1], "the behavior has changed: backward"


def training(tokens, device):
    with torch.device(device):
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0, batch_first=True)
        net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        x = torch.randn(1, tokens, 128)
    return flops(lambda: net(x).sum().backward())


short, long = (training(tokens, "cpu") for tokens in (128, 1024))
true_short, true_long = (training(tokens, "meta") for tokens in (128, 1024))
print(f"a step of a Transformer: {long / true_long:.0%} at 1024 tokens; 8 times the tokens cost "
      f"{long / short:.1f} times as much, on meta {true_long / true_short:.1f} times")
assert long == 8 * short and round(long / true_long, 2) == 0.32, "the behavior has changed: linear"
assert true_long > 16 * true_short

# Vectors
w, v, stack = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH), torch.randn(3, WIDTH, WIDTH)
bilinear = nn.Bilinear(WIDTH, WIDTH, 5)
for name, call in {
    "W @ v": lambda: w @ v,
    "x @ v": lambda: x @ v,
    "v @ v": lambda: v @ v,
    "addmv": lambda: torch.addmv(v, w, v),
    "addbmm": lambda: torch.addbmm(w, stack, stack),
    "Bilinear": lambda: bilinear(x, x),
}.items():
    counted = flops(call)
    print(f"{name}: {counted}")
    assert counted == 0, "the behavior has changed: " + name
assert flops(lambda: v @ w) == flops(lambda: w @ v[:, None]) == flops(lambda: F.linear(v, w)) == 2 * WIDTH**2
assert flops(lambda: torch.baddbmm(stack, stack, stack)) == 3 * 2 * WIDTH**3
formula = {torch.ops.aten.mv: lambda matrix, vector, out_shape=None: 2 * matrix[0] * matrix[1]}
assert flops(lambda: w @ v, custom_mapping=formula) == 2 * WIDTH**2
PYTHON

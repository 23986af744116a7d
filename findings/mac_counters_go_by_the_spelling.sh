#!/usr/bin/env bash
# ptflops 0.7.5, fvcore 0.1.5.post20221221 and thop 0.1.1.post2209072238 (each the newest on PyPI) with torch 2.13.0:
# multiply-adds (MACs) of one product, written in several ways.
#
# Expected: the same number however it is written, or a word that something was left out; and of ptflops, for which "the
# default backend is `aten`", as its README says, that it counts what reaches aten.
# Seen: (1) The default of ptflops is the other backend, "pytorch", which the README says not to use for transformers.
# There torch.matmul(x, W) counts, and x @ W, F.linear, torch.einsum and F.conv1d are 0. Attention that is written with
# @ loses its scores and has 20% left at 512 tokens and width 64; written with torch.matmul it keeps them.
# (2) Where the left factor has no batch, as in A @ x with the adjacency of a graph network or the token mixing of an
# MLP-Mixer, fvcore counts one product for the whole batch, a 32nd of 32 graphs, and lists no unsupported operator. So
# does ptflops with torch.matmul, by default. (3) thop goes by the exact class: nn.Linear with weight_norm or another
# parametrization is 0, and so is a subclass of it. A layer in two blocks counts eight times instead of twice, and a
# transposed convolution stride² times.
# Tables of such counts compare spellings: a normalized weight makes a net free, and a larger batch makes a graph cheap.
# ptflops notes that its backend "pytorch" leaves out some functions; of thop, issues 197, 98 and 93 (open, two of them
# since 2020) have missing attention, shared layers and transposed convolutions, and fvcore's 130 that a vector on the
# right raises. We found none about the default of ptflops, parametrized layers, or A @ x. backend="aten" is right about
# all that is here, and fvcore about all but A @ x, which it has right if A is expanded, and to four digits by einsum.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ptflops==0.7.5 fvcore==0.1.5.post20221221 \
    thop==0.1.1.post2209072238 setuptools torch==2.13.0 numpy
OMP_NUM_THREADS=2 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy
from importlib.metadata import metadata, version

import torch
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from thop import profile
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

WIDTH, TOKENS = 64, 512


class Written(nn.Module):
    """A function of an input and a weight."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def by_ptflops(module, shape, **options):
    """The tool puts a batch of one in front."""
    return get_model_complexity_info(
        copy.deepcopy(module), shape, as_strings=False, print_per_layer_stat=False, **options
    )[0]


def by_fvcore(module, shape, silent=False):
    counted = FlopCountAnalysis(copy.deepcopy(module), torch.randn(shape)).unsupported_ops_warnings(False)
    total = counted.total()
    assert not (silent and counted.unsupported_ops())
    return total


def by_thop(module, shape):
    return profile(copy.deepcopy(module), (torch.randn(shape),), verbose=False)[0]


print(*(f"{name} {version(name)}" for name in ("ptflops", "fvcore", "thop", "torch")))

# (1)
readme = metadata("ptflops").get_payload() or metadata("ptflops")["Description"]
assert "The default backend is `aten`" in readme
torch.manual_seed(0)
shape, true = (TOKENS, WIDTH), TOKENS * WIDTH**2
SPELLINGS = {
    "torch.matmul": lambda m, x: torch.matmul(x, m.weight),
    "x.matmul": lambda m, x: x.matmul(m.weight),
    "@": lambda m, x: x @ m.weight,
    "F.linear": lambda m, x: F.linear(x, m.weight),
    "torch.einsum": lambda m, x: torch.einsum("bti,io->bto", x, m.weight),
    "F.conv1d": lambda m, x: F.conv1d(x.mT, m.weight[..., None]).mT,
}
for name, function in SPELLINGS.items():
    module = Written(function)
    counts = [by_ptflops(module, shape, **backend) for backend in ({}, {"backend": "pytorch"}, {"backend": "aten"})]
    fvcore = by_fvcore(module, (1, *shape))
    print(f"{name}: ptflops {counts[0]}, with backend='aten' {counts[2]}; fvcore {fvcore:.0f}")
    assert counts[0] == counts[1], "the behavior has changed: another default"
    assert counts[0] == (true if "matmul" in name else 0), "the behavior has changed: " + name
    assert counts[2] == true and abs(fvcore / true - 1) < 0.001  # of einsum it has four digits


def attention(multiply):
    def attend(module, x):
        queries, keys, values = module.going_in(x).chunk(3, -1)
        weights = multiply(queries, keys.mT).softmax(-1)
        return module.going_out(multiply(weights, values))

    layers = {"going_in": nn.Linear(WIDTH, 3 * WIDTH, bias=False), "going_out": nn.Linear(WIDTH, WIDTH, bias=False)}
    return Written(attend, **layers)


def at(left, right):
    return left @ right


def matmul(left, right):
    return torch.matmul(left, right)  # looked up with each call: ptflops replaces it


with_at, with_matmul = (by_ptflops(attention(multiply), (TOKENS, WIDTH)) for multiply in (at, matmul))
projections, scores = 4 * TOKENS * WIDTH**2, 2 * TOKENS**2 * WIDTH
print(f"attention by ptflops: {with_at} with @, {with_matmul} with torch.matmul")
assert with_at == projections and round(with_at / with_matmul, 2) == 0.2, "the behavior has changed: attention"
assert by_ptflops(attention(at), (TOKENS, WIDTH), backend="aten") == with_matmul
assert with_matmul == projections + scores == by_fvcore(attention(at), (1, TOKENS, WIDTH))

# (2) A mixes 16 nodes of each graph.
NODES = 16
adjacency = torch.rand(NODES, NODES)
for batch in (1, 32):
    shape, true = (batch, NODES, WIDTH), batch * NODES**2 * WIDTH
    by_at, by_matmul = Written(lambda m, x: at(adjacency, x)), Written(lambda m, x: matmul(adjacency, x))
    right = (
        by_ptflops(by_matmul, shape, backend="aten"),
        by_fvcore(Written(lambda m, x: adjacency.expand(len(x), -1, -1) @ x), shape),
        by_fvcore(Written(lambda m, x: x.mT @ adjacency.T), shape),
    )
    by_einsum = by_fvcore(Written(lambda m, x: torch.einsum("nm,bmf->bnf", adjacency, x)), shape)
    counts = by_fvcore(by_at, shape, True), by_fvcore(by_matmul, shape, True), by_ptflops(by_matmul, shape)
    print(f"A @ x of {batch} graphs: fvcore {counts[0]}, ptflops {counts[2]}, with backend='aten' {right[0]}")
    assert counts == (true // batch,) * 3, "the behavior has changed: A @ x"
    assert right == (true,) * 3 and abs(by_einsum / true - 1) < 0.001

# (3)
linear, shape = nn.Linear(WIDTH, WIDTH, bias=False), (8, WIDTH)
true = 8 * WIDTH**2


class Own(nn.Linear):
    """A subclass that adds nothing."""


layers = {
    "weight_norm": parametrizations.weight_norm(copy.deepcopy(linear)),
    "spectral_norm": parametrizations.spectral_norm(copy.deepcopy(linear)),
    "a subclass": Own(WIDTH, WIDTH, bias=False),
}
for name, layer in layers.items():
    counted = by_thop(layer, shape)
    print(f"Linear with {name}: thop {counted:.0f}, fvcore {by_fvcore(layer, shape)}")
    assert counted == 0, "the behavior has changed: " + name
    assert by_thop(linear, shape) == by_fvcore(linear, shape) == by_ptflops(layer, shape, backend="aten") == true
    assert true <= by_fvcore(layer, shape) < 1.1 * true  # of the spectral norm, a product with a vector on top
shared = nn.Sequential(nn.Sequential(linear), nn.Sequential(linear))
twice = nn.Sequential(nn.Sequential(linear), nn.Sequential(copy.deepcopy(linear)))
up = nn.ConvTranspose2d(8, 8, 4, stride=4, bias=False)
counts = by_thop(shared, shape), by_thop(twice, shape), by_thop(up, (1, 8, 10, 10))
print(f"thop: a layer in two blocks {counts[0]:.0f}, two layers {counts[1]:.0f}; "
      f"a transposed convolution {counts[2]:.0f}")
assert counts[0] == 8 * true, "the behavior has changed: shared layers"
assert counts[1] == by_ptflops(shared, shape, backend="aten") == by_fvcore(shared, shape) == 2 * true
assert counts[2] == 16 * by_fvcore(up, (1, 8, 10, 10)), "the behavior has changed: transposed convolutions"
assert by_fvcore(up, (1, 8, 10, 10)) == by_ptflops(up, (8, 10, 10), backend="aten") == 100 * 8 * 8 * 16
PYTHON

#!/usr/bin/env bash
# torch 2.13.0 on a CPU: torch.nn.attention.flex_attention with a BlockMask made from a list of blocks.
#
# Expected: attention within the listed blocks, with torch.compile or without; compiling changes the speed, and the warning
# of the call without it speaks of a fused kernel and nothing else.
# Seen: without torch.compile the blocks are ignored. That path takes the function mask_mod out of the BlockMask and
# nothing else; where it is not given, BlockMask.from_kv_blocks puts one there that is always true, so attention is dense.
# With a causal mask_mod it is plain causal attention. Compiled, the blocks count.
# create_block_mask makes blocks from a mask_mod, so there the two agree, and a first test sees nothing. to_dense(),
# sparsity() and printing show the blocks, too.
# Who lists blocks (learned or top-k blocks, MoBA, paged caches) debugs one attention and trains another, and a model that
# someone runs uncompiled is not the one that was trained. A mask_mod that looks the blocks up in a table is right in both.
set -euo pipefail
command -v g++ > /dev/null || { echo "wants g++, for torch.compile" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
torch.manual_seed(0)
BLOCK, ROWS = 128, 4
Q, K, V = torch.randn(3, 1, 1, ROWS * BLOCK, 16).unbind()
CHOSEN = [[0, 2], [1, 0], [2, 0], [3, 1]]  # of 4 blocks of keys, two for each block of queries
TABLE = torch.zeros(ROWS, ROWS, dtype=torch.bool).scatter_(1, torch.tensor(CHOSEN), True)
BLOCKS = TABLE.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
CAUSAL = torch.ones_like(BLOCKS).tril()


def causal(b, h, q, k):
    return q >= k


def looked_up(b, h, q, k):
    return TABLE[q // BLOCK, k // BLOCK]


def from_blocks(mask_mod=None):
    indices = torch.zeros(1, 1, ROWS, ROWS, dtype=torch.int32)
    indices[..., :2] = torch.tensor(CHOSEN)
    count = torch.full((1, 1, ROWS), 2, dtype=torch.int32)
    return BlockMask.from_kv_blocks(count, indices, BLOCK_SIZE=BLOCK, mask_mod=mask_mod)


def error(found, mask):
    return (found - scaled_dot_product_attention(Q, K, V, attn_mask=mask)).abs().max().item()


compiled = torch.compile(flex_attention)
everything = torch.ones_like(BLOCKS)
print("torch", torch.__version__)
for name, mask_mod, within, ignored in (
    ("the blocks alone", None, BLOCKS, everything),
    ("the blocks and a causal mask_mod", causal, BLOCKS & CAUSAL, CAUSAL),
):
    mask = from_blocks(mask_mod)
    assert torch.equal(mask.to_dense()[0, 0].bool(), TABLE) and mask.sparsity() == 50
    for how, attend, right, wrong in (
        ("torch.compile", compiled, within, ignored),
        ("uncompiled", flex_attention, ignored, within),
    ):
        found = attend(Q, K, V, block_mask=mask)
        print(f"{name}, {how}: differs from attention within the blocks by {error(found, within):.1e},"
              f" from that without blocks by {error(found, ignored):.1e}")  # fmt: skip
        assert error(found, right) < 1e-5 and error(found, wrong) > 0.1, "the behavior has changed"

for name, mask, right in (
    ("a mask_mod that looks the blocks up", from_blocks(looked_up), BLOCKS),
    ("create_block_mask", create_block_mask(causal, None, None, ROWS * BLOCK, ROWS * BLOCK, device="cpu"), CAUSAL),
):
    errors = [error(attend(Q, K, V, block_mask=mask), right) for attend in (flex_attention, compiled)]
    print(f"{name}: uncompiled {errors[0]:.1e}, torch.compile {errors[1]:.1e}")
    assert max(errors) < 1e-5
PYTHON

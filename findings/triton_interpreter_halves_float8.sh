#!/usr/bin/env bash
# triton 3.9.0 with TRITON_INTERPRET=1: casts of fp32 to float8 and bfloat16, and arithmetic in bfloat16, on the CPU.
#
# Expected: the interpreter is what one tests kernels with, so a cast rounds to the nearest number, as tl.cast has it by
# default and as GPUs do; what it cannot do raises.
# Seen: (1) to float8, 1.9 becomes 1.0 and 7.9 becomes 4.0: where rounding up reaches the next power of two, the carry is
# lost at every second of them, which halves the number. Of normally distributed numbers that hits 5% (e5m2) and 3%
# (e4m3fn), and infinity becomes 256 in e4m3fn. (2) To bfloat16 it cuts off, asked for "rtne" or not: half of all numbers
# are one unit too small, and none is too large, so sums drift. float16 is right. (3) 1 + 1 in bfloat16 is 1.7e38: the
# documentation calls such operations unsupported, but instead of raising they work on the bits as integers, tl.sum and
# tl.dot as well.
# A correct kernel fails its test, or the test is loosened until it passes anything. Load as fp32, store as fp32, and let
# torch do the casts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy
cat >"$folder/casts.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def cast_kernel(x, y, ROUNDING: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, tl.cast(tl.load(x + at), y.dtype.element_ty, fp_downcast_rounding=ROUNDING))


@triton.jit
def sum_kernel(x, y, total, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    number = tl.load(x + at)
    tl.store(y + at, number + number)
    tl.store(total, tl.sum(number, 0))


@triton.jit
def dot_kernel(a, b, c, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def cast(x, dtype, rounding=None):
    y = torch.empty(x.shape, dtype=dtype)
    cast_kernel[(1,)](x, y, rounding, x.numel())
    return y.float()


def shown(numbers):
    return " ".join(f"{number:.5g}" for number in numbers.tolist())


few = torch.tensor([1.9, 7.9, 3.9, torch.inf])
many = torch.randn(1 << 14, generator=torch.Generator().manual_seed(0))
for dtype in (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16):
    found, right = cast(many, dtype), many.to(dtype).float()
    name, wrong = str(dtype).removeprefix("torch."), (found != right).float().mean().item()
    print(f"{name:14}", shown(few), "become", shown(cast(few, dtype)), "by torch", shown(few.to(dtype).float()))
    print(f"{'':14}", f"{wrong:.1%} of normally distributed numbers are others than torch's")
    assert torch.equal(found, cast(many, dtype, "rtne"))
    if dtype.itemsize == 1:
        assert cast(few, dtype)[2] == 4.0 and cast(few, dtype)[1] == 4.0, "the behavior has changed: 7.9 is another number"
        halved = (found == right / 2).float().mean().item()
        print(f"{'':14}", f"{halved:.1%} are half of torch's")
        assert 0.02 < halved < 0.06
    elif dtype == torch.bfloat16:
        assert 0.45 < wrong < 0.55, "the behavior has changed: bfloat16 is rounded"
        assert (found.abs() <= right.abs()).all() and torch.equal(found, cast(many, dtype, "rtz"))
    else:
        assert wrong == 0
assert cast(few, torch.float8_e5m2)[0] == 1.0, "the behavior has changed: 1.9 is another number"
assert cast(few, torch.float8_e4m3fn)[3] == 256.0, "the behavior has changed: infinity is another number"

ones = torch.ones(16, dtype=torch.bfloat16)
doubled, total = torch.empty_like(ones), torch.empty(1)
sum_kernel[(1,)](ones, doubled, total, 16)
print("bfloat16: 1 + 1 =", f"{doubled[0].item():.2g} and 16 ones sum to {total.item():.2g}")
assert doubled[0] > 1e38 and total != 16, "the behavior has changed: bfloat16 is added"

a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(k)).bfloat16() for k in (1, 2))
product, right = torch.empty(16, 16), a.double() @ b.double()
dot_kernel[(1,)](a, b, product, 16)
error = ((product - right).norm() / right.norm()).item()
print(f"tl.dot in bfloat16: the error is {error:.1e} of the product")
assert error > 0.5, "the behavior has changed: bfloat16 is multiplied"
dot_kernel[(1,)](a.half(), b.half(), product, 16)
assert ((product - a.half().double() @ b.half().double()).norm() / right.norm()) < 1e-4
print("triton", triton.__version__, "torch", torch.__version__)
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/casts.py"

#!/usr/bin/env bash
# torch 2.13.0, on a machine without a GPU: what a call of torch.manual_seed does besides seeding.
#
# Expected: it sets the CPU's generator, in about a microsecond; for devices that nobody has it notes a number.
# Seen: for each of three kinds of device that are not initialized it queues a call together with the text of the whole
# call stack, which it formats anew each time. So the call takes longer the deeper it stands: 95 µs at the top of a program and
# 372 µs 60 calls down, where torch.default_generator.manual_seed takes 1 µs (AMD Zen 5). Both leave the CPU's generator the same.
# Seeding before each sample, so that augmentations can be replayed, thus has its price, and more so inside a framework.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import timeit
import traceback

import torch


def below(depth, call):
    return call() if depth == 0 else below(depth - 1, call)


def microseconds(seed):
    return round(timeit.timeit(lambda: seed(0), number=500) / 500 * 1e6, 1)


print("torch", torch.__version__)
print("manual_seed, µs:", microseconds(torch.manual_seed))
print("manual_seed, 60 calls down, µs:", below(60, lambda: microseconds(torch.manual_seed)))
print("default_generator.manual_seed, µs:", microseconds(torch.default_generator.manual_seed))

calls = []
format_stack = traceback.format_stack


def counted(*args, **kwargs):
    calls.append("format_stack")
    return format_stack(*args, **kwargs)


traceback.format_stack = counted
torch.manual_seed(0)
torch.manual_seed(0)
torch.default_generator.manual_seed(0)
print("stacks formatted by two calls:", len(calls))  # 6
torch.manual_seed(0)
first = torch.rand(3)
torch.default_generator.manual_seed(0)
assert torch.equal(torch.rand(3), first)
assert len(calls) == 9, "the behavior has changed"
PYTHON

#!/usr/bin/env bash
# torch 2.13.0 and glibc 2.36: how many pages a training step on a CPU faults in, once it is warm.
#
# Expected: next to none: every step allocates the same buffers, and malloc hands out again what was freed.
# Seen: 16,000 a step, at 250 images of 32x32 and two convolutions to 64 channels. glibc raises its threshold for
# mmap to the largest buffer that was freed, here 18 MB, and gives the top of the heap back to the system when twice as much
# is free there, which is so at the end of each step. A step of 33 ms takes 49 (AMD Zen 5, 2 threads). With
# GLIBC_TUNABLES=glibc.malloc.hugetlb=1, or MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ set high, they are gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/step.py" <<'PYTHON'
import resource
import sys
import time

import torch
from torch import nn

torch.set_num_threads(2)
net = nn.Sequential(
    nn.Conv2d(3, 64, 4, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(),
    nn.Flatten(), nn.Linear(4096, 10),
).to(memory_format=torch.channels_last)  # fmt: skip
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
images, labels = torch.randn(250, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randint(10, (250,))


def steps(number):
    """Page faults and milliseconds of a step."""
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(number):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return faults / number, 1e3 * (time.perf_counter() - start) / number


steps(10)
faults, milliseconds = steps(40)
print(f"torch {torch.__version__}, {sys.argv[1]}: {faults:,.0f} page faults and {milliseconds:.0f} ms a step")
assert (faults > 4000) if sys.argv[1] == "defaults" else (faults < 400), "the behavior has changed"
PYTHON
"$folder/venv/bin/python" "$folder/step.py" defaults
MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 "$folder/venv/bin/python" "$folder/step.py" kept

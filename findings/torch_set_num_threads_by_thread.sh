#!/usr/bin/env bash
# torch 2.13.0 for Linux (OpenMP): torch.set_num_threads in a process with several Python threads.
#
# Expected: one setting of the process: torch.set_num_threads(1) in the main thread holds in all threads.
# Seen: a thread takes the number once, at its first use of torch, and keeps it. A worker of a pool that has used torch
# goes on with the old number after the main thread set another; a worker that starts later has the new one. And a
# worker that sets it changes the number of threads yet to come, not that of the main thread.
# Who limits torch after a thread pool is warm (servers, data loaders of threads, benchmarks) limits the wrong threads:
# two workers run products of different speed side by side, and oversubscribe the machine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import torch


def in_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


torch.set_num_threads(4)
warm = ThreadPoolExecutor(1)
assert warm.submit(torch.get_num_threads).result() == 4

torch.set_num_threads(1)
seen = torch.get_num_threads(), warm.submit(torch.get_num_threads).result(), in_new_thread()
print("set to 1 by the main thread: main {}, worker that was there {}, new worker {}".format(*seen))
assert seen == (1, 4, 1), f"the behavior has changed: {seen}"

warm.submit(torch.set_num_threads, 2).result()
seen = torch.get_num_threads(), warm.submit(torch.get_num_threads).result(), in_new_thread()
print("set to 2 by the worker:      main {}, worker that was there {}, new worker {}".format(*seen))
assert seen == (1, 2, 2), f"the behavior has changed: {seen}"
print("torch", torch.__version__)
PYTHON

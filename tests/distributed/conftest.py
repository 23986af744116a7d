"""Two gloo processes run once; what they found lies in files, which all tests read."""

import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.distributed import workers

_SECONDS = 300  # far more than the few that it takes


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    from tests.distributed import block_rows

    folder = tmp_path_factory.mktemp("gloo")
    block_rows.save_alone(folder)
    context = mp.start_processes(workers.work, (str(folder),), nprocs=workers.WORLD, join=False, start_method="spawn")
    deadline = time.monotonic() + _SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"two processes must end within {_SECONDS} s")
    return folder


@pytest.fixture(scope="session")
def ranks(folder):
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(workers.WORLD)]

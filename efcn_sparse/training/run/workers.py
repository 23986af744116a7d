"""Executors for the stages of a run: processes on this machine, and the workers of a Dask scheduler."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import forkserver
from typing import Any

from efcn_sparse.importing import require

# What every stage needs; torch's optimizers import torch._dynamo when the first one is made.
_PRELOADED = ("efcn_sparse.training.run.stage", "torch._dynamo")
_NOT_SENT = "task must be what another process can import, or its name such as 'my_file.py:task'"


class Processes(Executor):
    """So many worker processes, of which each can die alone: its call fails, and the next one gets a new process.

    A ``ProcessPoolExecutor`` of several processes fails all its calls if one of them dies, and takes no more. Processes
    come from a fork server, which imports torch once for all. So a program that makes one runs its own part under
    ``if __name__ == "__main__":``. They end with this process, however it ends.

    Example:
        >>> with Processes(1) as workers:
        ...     workers.submit(abs, -2).result()
        2
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="stage")  # each waits for a process of its own
        self._own = threading.local()
        self._pids: set[int] = set()
        self._pools: list[ProcessPoolExecutor] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        forkserver.ensure_running()  # it imports while this process looks at the data

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call ``fn`` in one of the processes."""
        return self._threads.submit(self._call, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; without ``wait`` in the middle of what they do."""
        if not wait:
            for pid in self._pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(wait=kind is None, cancel_futures=True)

    def _call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        pool: ProcessPoolExecutor | None = getattr(self._own, "pool", None)
        if pool is None:
            pool = self._own.pool = ProcessPoolExecutor(1, self._context, _begin, (dict(os.environ),))
            self._pools.append(pool)
            self._pids.add(pool.submit(os.getpid).result())
        try:
            call = pickle.dumps((fn, args, kwargs))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"{_NOT_SENT}: {error}") from None
        try:
            return pool.submit(_called, call).result()
        except BrokenExecutor:
            self._own.pool = None
            raise


def _called(call: bytes) -> Any:
    """In a worker: an error in reading the call is the caller's, and no death of the worker."""
    try:
        fn, args, kwargs = pickle.loads(call)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{_NOT_SENT}: {error}") from None
    return fn(*args, **kwargs)


def _begin(environ: dict[str, str]) -> None:
    """In a new process: take over the environment, leave interruptions to the parent, and end with it."""
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def dask_workers(address: str) -> Iterator[Executor]:
    """The workers of the Dask scheduler at ``address``, such as ``tcp://10.0.0.1:8786``.

    Raises:
        ValueError: no scheduler answers there.
        ModuleNotFoundError: distributed is missing; the message names the extra.
    """
    distributed = require("distributed", package="distributed", extra="dask", needed_for="--dask")
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"dask must be the address of a scheduler that answers, got {address!r}: {error}") from None
    with client:
        yield client.get_executor(pure=False)

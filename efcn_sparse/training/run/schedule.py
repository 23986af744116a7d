"""Stages on the workers of an executor: CNNs first, what is embedded from them as soon as its snapshot is there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from typing import Any

from efcn_sparse.training.run.checkpoint import checkpoint_path
from efcn_sparse.training.run.plan import Stage
from efcn_sparse.training.run.source import DataBySeed
from efcn_sparse.training.run.stage import Job, train_stage
from efcn_sparse.training.run.watch import Watch

_log = logging.getLogger("efcn_sparse.training")
_LOOK_EVERY = 0.2  # seconds
_DEATHS = 3  # of workers that trained the same stage, after which it is given up


class Here(Executor):
    """Trains each stage in this process, at once."""

    def __init__(self, data_by_seed: DataBySeed, watch: Watch) -> None:
        self._data_by_seed, self._watch = data_by_seed, watch

    def submit(self, fn: Callable[..., Any], /, job: Job) -> Future[Any]:  # type: ignore[override]
        """A future that is done."""
        done: Future[Any] = Future()
        done.set_result(fn(job, self._data_by_seed, lambda: self._watch.look(job.stage)))
        return done


def train_all(jobs: Sequence[Job], executor: Executor, watch: Watch, finish: Callable[[Stage], None]) -> None:
    """Train the stages of ``jobs``, in their order where they have to wait for workers.

    Args:
        finish: called in this process with each stage that is done.

    Raises:
        RuntimeError: workers have died; the message names their stages. What the others did is kept.
    """
    waiting, running, deaths = list(jobs), dict[Future[Any], Job](), Counter[str]()

    def begin(job: Job, dead: Sequence[str] = ()) -> None:
        try:
            running[executor.submit(train_stage, job)] = job
        except BrokenExecutor as error:  # what runs there has died too, seen or not
            names = " or ".join(dict.fromkeys([*dead, *(one.stage.name for one in running.values())]))
            raise RuntimeError(
                f"a worker died while it trained {names or 'something else'}, and its executor takes no more work: "
                "start again, and the run goes on from the last checkpoints"
            ) from error

    def collect(seconds: float) -> None:
        done = wait(running, seconds, FIRST_COMPLETED).done if running else ()
        for job in running.values():
            watch.look(job.stage)
        dead = [running[future].stage.name for future in done if _died(future)]
        for future in done:
            job = running.pop(future)
            if not _died(future):
                future.result()
                watch.end(job.stage)
                finish(job.stage)
                continue
            deaths[job.stage.name] += 1
            if deaths[job.stage.name] == _DEATHS:
                raise RuntimeError(f"{_DEATHS} workers have died while they trained {job.stage.name}")
            _log.warning("a worker died while it trained %s, which goes on from its last checkpoint", job.stage.name)
            begin(job, dead)

    try:
        while waiting or running:
            for job in tuple(waiting):
                unfinished = {one.stage.name for one in (*waiting, *running.values())}
                if not _may_begin(job, unfinished):
                    continue
                waiting.remove(job)
                for one in running.values():  # the rows of a CNN are there before its checkpoint is
                    watch.look(one.stage)
                job = replace(job, parent_diverged=_parent_diverged(job.stage, watch.diverged))
                begin(job)
                collect(0.0)
            collect(_LOOK_EVERY)
    except BaseException:
        for future in running:
            future.cancel()
        raise


def _may_begin(job: Job, unfinished: set[str]) -> bool:
    """Whether a stage needs nothing, or what it is embedded from is there."""
    stage, cnn = job.stage, job.stage.cnn
    if stage.relax_epoch is None or cnn not in unfinished:
        return True
    return checkpoint_path(job.run_dir, cnn, stage.relax_epoch).is_file()


def _parent_diverged(stage: Stage, diverged: Mapping[str, int]) -> bool:
    """Whether its CNN had diverged by the epoch at which it was to be embedded."""
    return stage.relax_epoch is not None and diverged.get(stage.cnn, stage.first + 1) <= stage.first


def _died(future: Future[Any]) -> bool:
    """Whether the worker is gone, and not the stage wrong; Dask calls that KilledWorker."""
    error = None if future.cancelled() else future.exception()
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"

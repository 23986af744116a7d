"""The relax protocol: train a CNN, embed its snapshots, train on, beside a CNN that goes on and a standard FCN."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from efcn_sparse.checkpoint.atomic import write_text_atomically
from efcn_sparse.training.arms import CNN, FCN
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.metrics import LAYERS, METRICS, STAGES, MetricsFile, part_path
from efcn_sparse.training.run.plan import Stage, stages
from efcn_sparse.training.run.preflight import check_device, check_fits
from efcn_sparse.training.run.record import stage_log
from efcn_sparse.training.run.run_directory import held, note_environment, refuse_other
from efcn_sparse.training.run.schedule import Here, train_all
from efcn_sparse.training.run.source import DataBySeed, Source
from efcn_sparse.training.run.stage import Job, settled
from efcn_sparse.training.run.start import check_growth
from efcn_sparse.training.run.state import State
from efcn_sparse.training.run.trial import FILE as TASK
from efcn_sparse.training.run.trial import recognize, try_out
from efcn_sparse.training.run.watch import Callback, Progress, Watch
from efcn_sparse.training.run.workers import Processes
from efcn_sparse.training.task import Task


def run_relax(
    task: Task | str | RelaxConfig,
    config: RelaxConfig | str | Path | None = None,
    run_dir: str | Path | None = None,
    *,
    executor: Executor | None = None,
    callbacks: Sequence[Callback] = (),
    download: bool = False,
    quiet: bool = False,
    checkpoint_seconds: float = 10.0,
    repair: bool = False,
) -> Path:
    """Run the protocol of ``config`` and write everything into a run directory, or go on where a killed run stopped.

    A run can be given more seeds, arms and relax times, finished or not; what is done stays. A net that diverges is
    recorded so, and the others go on.

    Law: killed at any moment and called again with the same arguments on the same machine, it ends with the same
    numbers, bit for bit; only the column ``seconds`` of metrics.csv differs. So it does when the arguments have grown,
    and with another executor, if torch has as many threads there. A finished run is left as it is.

    Args:
        task: what is trained: a :class:`Task`, or where it is found, as in ``"my_file.py:task"``. It is left out for a
            preset, which ``config`` names: ``run_relax(config, run_dir)``.
        config: what to run.
        run_dir: where; None is ``runs/<preset>``, or ``runs/task``. See docs/run_directory.md for the files.
        executor: trains the stages, several at a time, with one thread each unless ``config.threads`` says otherwise:
            any of ``concurrent.futures``, of Dask (``client.get_executor()``), mpi4py or loky; for submitit see
            docs/howto/own_net.md. Workers share ``run_dir``. None: one stage after the other, here.
        callbacks: functions that are called, here, with an :class:`Event` for each epoch, start and end of a stage.
        download: whether ``config.data`` may be fetched from the Hugging Face Hub.
        quiet: show no progress.
        checkpoint_seconds: how much work a kill may cost at most, beside the epoch that it strikes.
        repair: train again what metrics.csv or layers.csv have lost, from the checkpoints before it.

    Returns:
        The run directory.

    Raises:
        ValueError: the data are missing, ``run_dir`` holds something else, its metrics.csv or layers.csv have lost rows
            (unless ``repair``), the device is not there, or a net does not fit into memory; the message says what.
        BlockingIOError: another process is at work in ``run_dir``.
        RuntimeError: workers have died, and the executor takes no more work, or one stage killed three of them.

    Example:
        >>> import tempfile, efcn_sparse.training as training
        >>> tiny = training.RelaxConfig.from_preset(
        ...     "digits", seeds=(0,), arms=("cnn", "elcn"), cnn_epochs=1, relax_epochs=1, train_limit=50, test_limit=50)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run_dir = training.run_relax(tiny, folder, quiet=True)
        ...     sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
        ['checkpoints', 'config.json', 'environment.json', 'layers.csv', 'metrics.csv', 'stages']
    """
    if not isinstance(task, (Task, str)):  # of a preset
        task, config, run_dir = "", task, config if run_dir is None else run_dir
    if not isinstance(config, RelaxConfig):
        raise TypeError(f"config must be a RelaxConfig, got {type(config).__name__}")
    if task not in ("", config.preset) and config.preset:
        raise ValueError(f"preset must be left out beside a task, got {config.preset!r}")
    source = Source(task) if isinstance(task, Task) else Source(target=task, download=download)
    path = Path("runs") / (config.preset or "task") if run_dir is None else Path(run_dir)
    refuse_other(path, config)
    loaded = source.load(config)
    plan, data_by_seed = stages(config), DataBySeed(loaded, config)
    described = ""
    if not loaded.preset:  # finished or not: another task's accuracies are not this one's
        check_device(config.device)
        with settled(config.device, config.threads):
            described = recognize(path, config, data_by_seed.of_seed(plan[0].seed), plan[0].seed)
    if not repair and not unfinished(config, path, loaded):
        return path
    check_device(config.device)
    task_data = data_by_seed.of_seed(plan[0].seed)  # missing data are told before the folder is made
    if not (path / "config.json").is_file():  # one that was begun by an older version can still go on
        check_growth(config, plan, task_data.steps(config.batch_size))
    columns: tuple[str, ...] = METRICS
    if not loaded.preset:
        with settled(config.device, config.threads):
            own = try_out(config, task_data)
        columns += tuple(f"{part}_{name}" for part in ("train", "test") for name in own)
    check_fits(config, task=loaded, at_once=executor.count if isinstance(executor, Processes) else 1)
    threads = 1 if executor is not None and config.threads is None else config.threads
    with held(path, config):
        note_environment(path, config.device, threads)
        if described:
            write_text_atomically(path / TASK, described)
        _refuse_busy(path)
        state = State.read(plan, path, loaded.convolutions)
        if repair:
            state.remove_unrecorded(path)
            state = State.read(plan, path, loaded.convolutions)
        state.check(path)
        done = {stage.name: state.epochs_done(stage) for stage in plan}
        with (
            contextlib.closing(MetricsFile(path / "metrics.csv", columns, state.latest)) as metrics,
            contextlib.closing(MetricsFile(path / "layers.csv", LAYERS, state.latest)) as layers,
            contextlib.closing(Progress(plan, done, quiet=quiet)) as progress,
        ):
            for left in path.glob(f"{STAGES}/*.csv"):  # the files above have its rows now
                left.unlink()

            def finish(stage: Stage) -> None:
                layers.absorb(part_path(path, stage.name, "layers.csv"))
                metrics.absorb(part_path(path, stage.name, "metrics.csv"))

            jobs = []
            for stage in plan:
                remade = state.snapshots_wanted(stage) if stage.arm == CNN else ()
                if state.is_unfinished(stage) or remade:
                    jobs.append(Job(source, config, path, stage, columns, False, remade, threads, checkpoint_seconds))
            if executor is not None:  # what others wait for, and what takes longest, first
                jobs.sort(key=lambda job: {CNN: 0, FCN: 1}.get(job.stage.arm, 2))
            watch = Watch(path, columns, state.diverged, callbacks, progress)
            train_all(jobs, executor or Here(data_by_seed, watch), watch, finish)
            names = [stage.name for stage in plan]
            metrics.sort(names)
            layers.sort(names)
    return path


def unfinished(config: RelaxConfig, run_dir: str | Path, task: Task | None = None) -> list[Stage]:
    """The stages of ``config`` that a run directory does not hold whole; all of them if there is no run.

    Raises:
        ValueError: metrics.csv or layers.csv have lost rows, or those of a finished run hold lines that are none.
    """
    state = State.read(stages(config), Path(run_dir), (task or Source().load(config)).convolutions)
    state.check(Path(run_dir))
    left = [stage for stage in state.plan if state.is_unfinished(stage)]
    if state.wrong and not left:  # of an unfinished run it may be what a kill has torn
        raise ValueError(
            f"{state.wrong[0]}; no row is missing, and --repair (in Python, repair=True) removes what is none"
        )
    return left


def _refuse_busy(path: Path) -> None:
    """Raise ``BlockingIOError`` if a worker of an earlier start still trains a stage."""
    for part in path.glob(f"{STAGES}/*.metrics.csv"):
        with stage_log(path, part.name.removesuffix(".metrics.csv")):
            pass

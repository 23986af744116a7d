"""The relax protocol: train a CNN, embed its snapshots, train on, beside a CNN that goes on and a standard FCN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from efcn_sparse.training.arms import CNN
from efcn_sparse.training.checkpoint import checkpoint_path, epochs_on_disk
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data import depends_on_seed, load_data
from efcn_sparse.training.images import Images
from efcn_sparse.training.metrics import LAYERS, METRICS, MetricsFile, diverged, gaps, is_stillborn, read_evaluations
from efcn_sparse.training.plan import Stage, stages
from efcn_sparse.training.preflight import check_device, check_fits
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.record import Progress, Record
from efcn_sparse.training.run_directory import RunDirectory, refuse_other
from efcn_sparse.training.stage import remake_snapshots, run_stage

_MOST_TOLD = 8  # stages, in a message


def run_relax(
    config: RelaxConfig,
    run_dir: str | Path | None = None,
    *,
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
    but for the order of rows. A finished run is left as it is.

    Args:
        config: what to run.
        run_dir: where; None is ``runs/<preset>``. See docs/run_directory.md for the files.
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

    Example:
        >>> import tempfile, efcn_sparse.training as training
        >>> tiny = training.RelaxConfig.from_preset(
        ...     "digits", seeds=(0,), arms=("cnn", "elcn"), cnn_epochs=1, relax_epochs=1, train_limit=50, test_limit=50)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run_dir = training.run_relax(tiny, folder, quiet=True)
        ...     sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
        ['checkpoints', 'config.json', 'environment.json', 'layers.csv', 'metrics.csv']
    """
    if not isinstance(config, RelaxConfig):
        raise TypeError(f"config must be a RelaxConfig, got {type(config).__name__}")
    path = Path("runs") / config.preset if run_dir is None else Path(run_dir)
    plan = stages(config)
    refuse_other(path, config)
    if not repair and not unfinished(config, path):
        return path
    check_device(config.device)
    images = _Supply(config, download)
    images.of(plan[0].seed)  # missing data are told before the folder is made
    check_fits(config)
    with RunDirectory(path, config) as run, _settled(config):
        run.note_environment()
        state = _State.read(config, path)
        if repair:
            state.remove_unrecorded(path)
            state = _State.read(config, path)
        state.check(path)
        total = sum(stage.last - stage.first for stage in plan)
        with (
            contextlib.closing(MetricsFile(path / "metrics.csv", METRICS, state.latest)) as metrics,
            contextlib.closing(MetricsFile(path / "layers.csv", LAYERS, state.latest)) as layers,
            contextlib.closing(Progress(total, state.epochs_done(), quiet=quiet)) as progress,
        ):
            record = Record(metrics, layers, progress, run.checkpoints, state.diverged)
            for stage in plan:
                if state.is_unfinished(stage):
                    run_stage(config, stage, images.of(stage.seed), record, checkpoint_seconds)
                if stage.arm == CNN:
                    wanted = state.snapshots_wanted(stage.seed, record.diverged.get(stage.name, stage.last))
                    remake_snapshots(config, stage, wanted, images.of, record)
    return path


def unfinished(config: RelaxConfig, run_dir: str | Path) -> list[Stage]:
    """The stages of ``config`` that a run directory does not hold whole; all of them if there is no run.

    Raises:
        ValueError: metrics.csv or layers.csv have lost rows.
    """
    state = _State.read(config, Path(run_dir))
    state.check(Path(run_dir))
    return [stage for stage in state.plan if state.is_unfinished(stage)]


@dataclass(frozen=True)
class _State:
    """How far a run is.

    Attributes:
        latest: the epoch of the latest checkpoint of each stage that has one.
        diverged: the stages that have diverged, and at which epoch.
        lost: the epochs of each stage that checkpoints cover, and of which a row is missing.
    """

    plan: list[Stage]
    latest: dict[str, int]
    diverged: dict[str, int]
    lost: dict[str, list[int]]

    @classmethod
    def read(cls, config: RelaxConfig, path: Path) -> _State:
        plan = stages(config)
        latest = {stage: epochs[-1] for stage, epochs in epochs_on_disk(path / "checkpoints").items()}
        metrics, _ = read_evaluations(path / "metrics.csv", METRICS)
        layers, _ = read_evaluations(path / "layers.csv", LAYERS)
        covered = [row for row in metrics if row.epoch <= latest.get(row.stage, -1) or is_stillborn(row)]
        lost = gaps(plan, latest, covered, layers, PRESETS[config.preset].convolutions)
        return cls(plan, latest, diverged(covered), lost)

    def is_unfinished(self, stage: Stage) -> bool:
        return self.latest.get(stage.name, -1) < stage.last and stage.name not in self.diverged

    def epochs_done(self) -> int:
        return sum(
            (self.latest.get(stage.name, stage.first) if self.is_unfinished(stage) else stage.last) - stage.first
            for stage in self.plan
        )

    def snapshots_wanted(self, seed: int, last: int) -> list[int]:
        """The epochs up to ``last`` of which the CNN must have a checkpoint, so that what has not begun can begin."""
        begun = self.latest.keys() | self.diverged.keys()
        waiting = (stage for stage in self.plan if stage.seed == seed and stage.name not in begun)
        return sorted({s.relax_epoch for s in waiting if s.relax_epoch is not None and s.relax_epoch <= last})

    def check(self, path: Path) -> None:
        """Raise ``ValueError`` if rows have been lost."""
        if not self.lost:
            return
        told = [f"{name} {_epochs_text(epochs)}" for name, epochs in self.lost.items()]
        more = f" and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        raise ValueError(
            f"metrics.csv and layers.csv of {path} must have a row for each epoch that its checkpoints cover, got none "
            f"of {', '.join(told[:_MOST_TOLD])}{more}: put the files back, or train these stages again from the "
            "checkpoints before with --repair (in Python, repair=True)"
        )

    def remove_unrecorded(self, path: Path) -> None:
        """Remove the checkpoints of each stage from its first lost row on."""
        for name, epochs in epochs_on_disk(path / "checkpoints").items():
            for epoch in epochs if name in self.lost else ():
                if epoch >= self.lost[name][0]:
                    checkpoint_path(path / "checkpoints", name, epoch).unlink()


def _epochs_text(epochs: list[int]) -> str:
    whole = epochs[-1] - epochs[0] + 1 == len(epochs)
    if len(epochs) == 1:
        return f"epoch {epochs[0]}"
    return f"epochs {epochs[0]} to {epochs[-1]}" + ("" if whole else f" ({len(epochs)} of them)")


class _Supply:
    """The images of a seed, loaded when they are first asked for; those of one seed at a time are kept."""

    def __init__(self, config: RelaxConfig, download: bool) -> None:
        self._config, self._download = config, download
        self._kept: tuple[int, Images] | None = None

    def of(self, seed: int) -> Images:
        key = seed if depends_on_seed(self._config) else 0
        if self._kept is None or self._kept[0] != key:
            self._kept = key, load_data(self._config, seed, download=self._download)
        return self._kept[1]


@contextlib.contextmanager
def _settled(config: RelaxConfig) -> Iterator[None]:
    """The run's threads and deterministic convolutions inside; the caller's settings and generators outside."""
    device = torch.device(config.device)
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.device("cpu"),  # whatever the default device is
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        ):
            yield
    finally:
        torch.set_num_threads(threads)

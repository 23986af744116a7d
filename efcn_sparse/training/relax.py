"""The relax protocol: train a CNN, embed its snapshots, train on, beside a CNN that goes on and a standard FCN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from efcn_sparse.training.checkpoint import epochs_on_disk
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data import depends_on_seed, load_data
from efcn_sparse.training.images import Images
from efcn_sparse.training.plan import stages
from efcn_sparse.training.preflight import check_fits
from efcn_sparse.training.record import LAYERS, METRICS, MetricsFile, Progress, Record
from efcn_sparse.training.run_directory import RunDirectory, refuse_other
from efcn_sparse.training.stage import run_stage


def run_relax(
    config: RelaxConfig,
    run_dir: str | Path | None = None,
    *,
    download: bool = False,
    quiet: bool = False,
    checkpoint_seconds: float = 10.0,
) -> Path:
    """Run the protocol of ``config`` and write everything into a run directory, or go on where a killed run stopped.

    Law: killed at any moment and called again with the same arguments on the same machine, it ends with the same
    numbers, bit for bit; only the column ``seconds`` of metrics.csv differs. A finished run is left as it is.

    Args:
        config: what to run.
        run_dir: where; None is ``runs/<preset>``. See docs/run_directory.md for the files.
        download: whether ``config.data`` may be fetched from the Hugging Face Hub.
        quiet: show no progress.
        checkpoint_seconds: how much work a kill may cost at most, beside the epoch that it strikes.

    Returns:
        The run directory.

    Raises:
        ValueError: the data are missing, ``run_dir`` holds something else, or a net does not fit into memory; the
            message says what.
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
    images = _Supply(config, download)
    images.of(plan[0].seed)  # missing data are told before the folder is made
    check_fits(config)
    with RunDirectory(path, config) as run, _settled(config):
        run.note_environment()
        latest = {stage: epochs[-1] for stage, epochs in epochs_on_disk(run.checkpoints).items()}
        total = sum(stage.last - stage.first for stage in plan)
        done = sum(latest.get(stage.name, stage.first) - stage.first for stage in plan)
        with (
            contextlib.closing(MetricsFile(path / "metrics.csv", METRICS, latest)) as metrics,
            contextlib.closing(MetricsFile(path / "layers.csv", LAYERS, latest)) as layers,
            contextlib.closing(Progress(total, done, quiet=quiet)) as progress,
        ):
            record = Record(metrics, layers, progress, run.checkpoints)
            for stage in plan:
                if latest.get(stage.name, -1) < stage.last:
                    run_stage(config, stage, images.of(stage.seed), record, checkpoint_seconds)
    return path


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

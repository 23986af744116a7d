"""``torch.set_default_device("cuda")`` changes no run of the experiment, and building a net draws from no generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from efcn_sparse.training import RelaxConfig, load_arm, run_relax
from efcn_sparse.training.nets import build_cnn, build_fcn
from tests.table import GPU

pytestmark = pytest.mark.skipif(not GPU, reason="needs a CUDA device: python -m tests.host_cuda pytest tests/host_cuda")
SMALL = RelaxConfig(
    preset="digits", seeds=(0,), arms=("cnn", "elcn"), cnn_epochs=1, relax_epochs=1, relax_times=(0,),
    train_limit=64, test_limit=32,
)  # fmt: skip


@pytest.fixture
def default_cuda() -> Iterator[None]:
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("build", [build_cnn, build_fcn])
def test_a_net_built_from_a_seed_leaves_the_generators(build) -> None:
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    build("digits", 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])


def test_a_net_built_from_a_seed_is_the_same_under_any_default_device(default_cuda: None) -> None:
    built = build_cnn("digits", 0)
    torch.set_default_device(None)
    for one, other in zip(built.parameters(), build_cnn("digits", 0).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_under_a_default_device(default_cuda: None, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    run_relax(SMALL, tmp_path / "run")
    assert all(not p.is_cuda for p in load_arm(tmp_path / "run", "elcn", 0, 0, 1).parameters())

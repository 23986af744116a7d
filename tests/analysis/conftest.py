from __future__ import annotations

import pytest

from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.presets import PRESETS, Preset
from tests.analysis.synthetic import tiny_cnn


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset():
    """A tiny net in the place of the digits preset's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "digits", Preset(tiny_cnn, (1, 8, 8), 10))
        yield


@pytest.fixture(scope="session")
def config() -> RelaxConfig:
    return RelaxConfig(
        preset="digits", seeds=(0, 1), arms=("cnn", "fcn", "elcn", "efcn-dilated2", "efcn-full"), cnn_epochs=12,
        relax_epochs=6, fcn_epochs=18, relax_times=(0, 1, 4, 12), batch_size=50,
    )  # fmt: skip

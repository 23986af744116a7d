"""What every test shares: seeded random numbers, Hypothesis without a clock, and one thread where that is asked for."""

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.table import is_left_out

# Cores are shared and runs must agree. To search further: pytest --hypothesis-profile=default
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny layers, where more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if hasattr(item, "callspec") and is_left_out(item.callspec.params)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]

"""What every test shares: seeded random numbers, and Hypothesis without a clock."""

import hypothesis
import pytest
import torch

# Cores are shared and runs must agree. To search further: pytest --hypothesis-profile=default
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

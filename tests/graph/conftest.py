"""Networks draw their weights the same in every run."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks draw their weights the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield

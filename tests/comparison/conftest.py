"""One thread, and a comparison judged on few images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from short_comparison import OPTIONS


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def options(few_labelled: Path) -> dict[str, Any]:
    return OPTIONS | {"labelled": few_labelled}

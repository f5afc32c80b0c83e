"""What every test starts with: one thread, no network, torchvision that can be imported."""

import importlib.util
import os
from pathlib import Path

import hypothesis
import torch

# After this file has prepared the process.
pytest_plugins = ["student_fixtures"]

TESTS = Path(__file__).parent
SHIM = TESTS / "sitecustomize_torchvision"

# Before any hub client is imported: it reads this once. Tests never download.
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

hypothesis.settings.register_profile("emptyset", deadline=None, derandomize=True)
hypothesis.settings.load_profile("emptyset")


def _install_torchvision_shim() -> None:
    """Here and, through PYTHONPATH, in every process that a test starts."""
    spec = importlib.util.spec_from_file_location(
        "torchvision_shim_for_tests", SHIM / "sitecustomize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    paths = [str(SHIM), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


_install_torchvision_shim()

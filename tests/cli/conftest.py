"""One finished run that the commands which read runs share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from emptyset.cli.app import app

Command = Callable[..., Result]

# Few images and steps: what is tested is the command line, not the quality.
TINY = [
    "--count", "8", "--set", "synthesize.steps=2", "--set", "evaluate.layer_images=4",
    "--set", "evaluate.latency_rounds=2", "--device", "cpu",
]  # fmt: skip


def emptyset(*arguments: object) -> Result:
    """Run the command line in this process; stdout and stderr are kept apart."""
    torch.set_num_threads(1)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def command() -> Command:
    return emptyset


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that change a run take `own_run`."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result = emptyset("quantize", "embedded:digits-resnet", *TINY, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def tiny() -> list[str]:
    return list(TINY)

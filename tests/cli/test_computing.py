"""Denormal numbers are zero while a command computes, and only then."""

import subprocess
import sys
from typing import NoReturn

import pytest
import torch
from typer.testing import CliRunner

from emptyset.cli import app as program
from emptyset.cli.computing import Computing, denormals_as_zero

# The smallest normal number is 1.18e-38.
SMALL = 1e-38


def left_of_a_tenth() -> float:
    return float(torch.tensor(SMALL) * 0.1)


needs_the_mode = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor has no such mode"
)


@needs_the_mode
def test_denormal_numbers_are_zero_inside_and_come_back() -> None:
    assert left_of_a_tenth() > 0
    with denormals_as_zero():
        assert left_of_a_tenth() == 0
        with denormals_as_zero():
            pass
        # The inner one leaves it as it was.
        assert left_of_a_tenth() == 0
    assert left_of_a_tenth() > 0


@needs_the_mode
def test_they_come_back_behind_an_error() -> None:
    with pytest.raises(ZeroDivisionError), denormals_as_zero():
        raise ZeroDivisionError
    assert left_of_a_tenth() > 0


# Large enough for several threads; each would give its part of the zeros.
THREADS = """
import torch
from emptyset.cli.computing import denormals_as_zero

with denormals_as_zero():
    torch.set_num_threads(3)
    print(int((torch.full((3_000_000,), 1e-38) * 0.1).count_nonzero()))
"""


@needs_the_mode
def test_all_threads_take_them_as_zero() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0"]


@needs_the_mode
def test_a_command_runs_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watching(_name: str) -> NoReturn:
        seen.append(left_of_a_tenth())
        raise KeyboardInterrupt

    monkeypatch.setattr("emptyset.recipe.find_recipe", watching)
    CliRunner().invoke(program.app, ["run", "anything"])
    assert seen == [0.0]


def test_which_commands_compute() -> None:
    computing = {c.name for c in program.app.registered_commands if c.cls is Computing}
    assert {c.name for c in program.app.registered_commands} - computing == {
        "report", "methods", "teachers",
    }  # fmt: skip

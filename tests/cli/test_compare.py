"""`emptyset compare`: options go where they belong, and the table says everything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_arrays import arrays_of

from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    data, path = arrays_of(held_out_images_path()), tmp_path / "scans.npz"
    np.savez(path, images=data["images"][:20], labels=data["labels"][:20])
    return path


def test_the_table_then_json_then_the_file_again(tmp_path: Path, scans: Path, command: Any) -> None:
    out = tmp_path / "c"
    arguments = [
        "compare", DIGITS, "--methods", "noise, small=zeroq", "--set", "methods.small.clip=true",
        "--count", "8", "--image-iterations", "30", "--bits", "w3a8", "--labelled", scans,
        "--seed", "2", "--device", "cpu", "--out", out, "-q",
    ]  # fmt: skip
    first = command(*arguments)
    assert first.exit_code == 0, first.output
    lines = [line.split() for line in first.stdout.splitlines()]
    assert any(line[:2] == ["small", "8"] and "24" in line and "3" in line for line in lines)
    assert "w3a8, plan integer; calibrate" in first.stdout
    assert "noise: takes no steps" in first.stdout
    assert str(out / "compare.md") in first.stdout

    again = command(*arguments, "--json")
    told = json.loads(again.stdout)
    assert told == json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert told["rows"][1]["settings"] == {"clip": True, "steps": 3, "plateau_patience": 5}
    # The file says everything; it is found in its own folder.
    from_file = command("compare", out / "compare.yaml", "--json", "-q")
    assert from_file.exit_code == 0, from_file.output
    assert json.loads(from_file.stdout)["rows"] == told["rows"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([DIGITS], "--methods: name the methods"),
        ([DIGITS, "--methods", "zerok"], "Did you mean 'zeroq'"),
        ([DIGITS, "--methods", "zeroq", "--seconds", "3", "--own-settings"], "exactly one of"),
        ([DIGITS, "--methods", "zeroq", "--set", "methods.zeroq.steps=3"], "decides the steps"),
        ([DIGITS, "--methods", "zeroq", "--refine", "calibrat"], "Did you mean 'calibrate'"),
        (["c.yaml", "--count", "9", "--bits", "w4a4"], "--count, --bits: the file says this"),
        (["c.yaml", "--mean", "0,0,0"], "--model and the like: the file says this"),
        (["c.yaml"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    tmp_path: Path, command: Any, arguments: list[str], said: str
) -> None:
    result = command("compare", *arguments, "--out", tmp_path / "c")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not (tmp_path / "c").exists()


def test_another_comparison_in_the_folder_is_refused(
    tmp_path: Path, command: Any, scans: Path
) -> None:
    shared = ["--count", "4", "--labelled", scans, "--device", "cpu", "--out", tmp_path / "c", "-q"]
    assert command("compare", DIGITS, "--methods", "noise", *shared).exit_code == 0
    refused = command("compare", DIGITS, "--methods", "noise", *shared, "--bits", "w2a2")
    assert refused.exit_code == 5
    assert "plan.bits: w4a4 there, w2a2 wanted" in refused.stderr

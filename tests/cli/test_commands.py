"""The commands beside the whole job, and how errors leave the program."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from emptyset import __version__, registry
from emptyset.cli.quantize import folder_name
from emptyset.images.image_set import ImageSet
from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"


def test_help_names_every_command(command: Any) -> None:
    shown = command("--help").stdout
    for name in [
        "quantize", "run", "synthesize", "select", "evaluate", "export", "check", "report",
        "methods", "teachers", "compare",
    ]:  # fmt: skip
        assert name in shown
        assert command(name, "--help").exit_code == 0


def test_version(command: Any) -> None:
    assert command("--version").stdout == f"emptyset {__version__}\n"


def test_methods_are_one_whole_line_each(command: Any) -> None:
    lines = command("methods").stdout.splitlines()
    entries = [entry for one in registry.ALL for entry in one.entries()]
    assert len(lines) == len(entries)
    for line, entry in zip(lines, entries, strict=True):
        assert line.split(maxsplit=2) == [entry.name, entry.kind, entry.sentence]
    told = json.loads(command("methods", "--json").stdout)
    assert [one["name"] for one in told] == [entry.name for entry in entries]


def test_teachers_are_one_line_each(command: Any) -> None:
    shown = command("teachers").stdout
    for prefix in ("embedded:", "timm:", "torchvision:", "pytorchcv:", "hf:", "file:"):
        assert any(line.startswith(prefix) for line in shown.splitlines())
    assert DIGITS in json.loads(command("teachers", "--json").stdout)["embedded"]


def test_synthesize_then_select(tmp_path: Path, command: Any) -> None:
    made, kept = tmp_path / "made", tmp_path / "kept"
    arguments = ["synthesize", DIGITS, "--count", "6", "--set", "synthesize.steps=2", "--out", made]
    first = command(*arguments, "--json")
    assert first.exit_code == 0, first.output
    images = ImageSet.load(made)
    assert len(images) == 6
    # A Gaussian start of a spread beyond that of the digits is hardly changed by two steps.
    assert "lie beyond black or white" in first.stderr
    assert json.loads(first.stdout)["digest"] == images.digest()
    assert {path.name for path in made.iterdir()} == {"card.json", "images.safetensors"}

    again = command(*arguments)
    assert again.exit_code == 5
    assert "--overwrite" in again.stderr
    assert command(*arguments, "--overwrite").exit_code == 0
    assert ImageSet.load(made).digest() == images.digest()

    selected = command("select", made, DIGITS, "--out", kept)
    assert selected.exit_code == 0, selected.output
    assert 1 <= len(ImageSet.load(kept)) <= 6


@pytest.mark.parametrize("count", [0, 1])
def test_zero_or_one_image_is_refused(tmp_path: Path, command: Any, count: int) -> None:
    result = command("synthesize", DIGITS, "--count", count, "--out", tmp_path / "made")
    assert result.exit_code == 2
    assert "count" in result.stderr or "image" in result.stderr
    assert not (tmp_path / "made").exists()


def test_evaluate_on_given_labelled_images(finished_run: Path, command: Any) -> None:
    result = command("evaluate", finished_run, "--images", held_out_images_path(), "--json", "-q")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    metrics = json.loads((finished_run / "metrics.json").read_text())
    # The restored run needs no weights: its float mode is the teacher.
    assert told["teacher"] == metrics["evaluation"]["teacher"]
    assert told["quantized"] == metrics["evaluation"]["quantized"]
    assert "top-1" in command("evaluate", finished_run, "-q").stdout


def test_check_holds_on_other_images(finished_run: Path, command: Any) -> None:
    result = command("check", finished_run, "--images", held_out_images_path(), "--limit", "16")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("holds")
    assert json.loads(command("check", finished_run, "--json", "-q").stdout)["holds"] is True


@pytest.mark.parametrize("limit", [-3, 0, 1])
def test_check_refuses_a_limit_that_leaves_nothing(
    finished_run: Path, command: Any, limit: int
) -> None:
    result = command("check", finished_run, "--limit", str(limit))
    assert result.exit_code == 2
    assert "--limit" in result.stderr
    assert "holds" not in result.stdout


def test_check_refuses_a_file_with_one_changed_weight(own_run: Path, command: Any) -> None:
    model = onnx.load(own_run / "model.onnx")
    weight = max(
        (one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8),
        key=lambda one: len(one.raw_data),
    )
    codes = bytearray(weight.raw_data)
    codes[len(codes) // 2] = (codes[len(codes) // 2] + 1) % 120
    weight.raw_data = bytes(codes)
    onnx.save(model, own_run / "model.onnx")
    result = command("check", own_run)
    assert result.exit_code == 3
    assert "does not compute what" in result.stderr


def test_export_writes_the_same_file_again(
    finished_run: Path, tmp_path: Path, command: Any
) -> None:
    out = tmp_path / "again" / "digits.onnx"
    result = command("export", finished_run, "--out", out, "-q")
    assert result.exit_code == 0, result.output
    again, first = onnx.load(out), onnx.load(finished_run / "model.onnx")
    assert again.graph == first.graph
    assert [path.name for path in out.parent.iterdir()] == ["digits.onnx"]


def test_report_writes_the_page_again(own_run: Path, command: Any) -> None:
    page = own_run / "report.html"
    before = page.read_text()
    page.unlink()
    result = command("report", own_run)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(page)
    assert page.read_text() == before


@pytest.mark.parametrize("name", ["check", "evaluate", "report"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, command: Any, name: str) -> None:
    result = command(name, tmp_path)
    assert result.exit_code == 5
    assert "not a run folder" in result.stderr


def test_ctrl_c_says_that_the_same_command_goes_on(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emptyset.job.fitted_images", interrupted)
    result = command("quantize", DIGITS, "--out", tmp_path / "r")
    assert result.exit_code == 130
    assert "The same command goes on" in result.stderr


def test_a_defect_of_ours_shows_the_trace_and_asks_for_a_report(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("emptyset.job.fitted_images", broken)
    result = command("quantize", DIGITS, "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "ZeroDivisionError: oh" in result.stderr
    assert "defect of emptyset" in result.stderr


def test_an_unknown_option_is_a_usage_error(command: Any) -> None:
    result = command("quantize", DIGITS, "--cont", "3")
    assert result.exit_code == 2
    assert "--count" in result.stderr


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("timm:resnet18.a1_in1k", "resnet18.a1_in1k-w4a8"),
        ("file:weights/mine.safetensors", "mine-w4a8"),
        ("file:", "network-w4a8"),
        ("hf:google/vit-base", "google-vit-base-w4a8"),
    ],
)
def test_the_default_folder_is_named_after_teacher_and_bits(teacher: str, expected: str) -> None:
    assert folder_name(teacher, "w4a8") == expected

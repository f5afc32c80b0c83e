"""`emptyset quantize` and `emptyset run`: the whole job from the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stored_arrays import arrays_of

from emptyset.job.restored import restore
from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"


def test_a_run_folder_holds_everything_the_design_names(finished_run: Path) -> None:
    names = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*")}
    assert names >= {
        "recipe.yaml", "images/images.safetensors", "images/card.json", "student.safetensors",
        "model.onnx", "certificate.json", "metrics.json", "report.html", "log.txt", "stages.json",
    }  # fmt: skip
    assert not any(".part" in name or name.startswith(".") for name in names)


def test_the_metrics_hold_every_result(finished_run: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert metrics["evaluation"]["quantized"]["count"] == 797
    assert (
        0
        <= metrics["evaluation"]["agreement"]["low"]
        <= metrics["evaluation"]["agreement"]["share"]
    )
    assert metrics["certificate"]["holds"] is True
    assert metrics["file"]["bytes"] == (finished_run / "model.onnx").stat().st_size
    assert metrics["file"]["bytes"] < metrics["file"]["float_bytes"]
    assert metrics["latency"]["quantized_ms"] > 0
    assert len(metrics["layers"]) == metrics["plan"]["layers"]
    assert metrics["images"]["count"] == 8
    assert metrics["images"]["history"][0]["method"] == "zeroq"


def test_an_unchanged_folder_does_nothing_and_says_so(
    finished_run: Path, command: Any, tiny: list[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.is_file()}
    result = command("quantize", DIGITS, *tiny, "--out", finished_run, "--json")
    assert result.exit_code == 0
    assert "Nothing to do" in result.stderr
    assert json.loads(result.stdout)["done"] == []
    assert {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.is_file()} == before


def test_run_with_the_written_recipe_gives_the_same_folder(
    finished_run: Path, command: Any
) -> None:
    result = command("run", finished_run / "recipe.yaml", "--out", finished_run)
    assert result.exit_code == 0
    assert "Nothing to do" in result.stderr


def test_the_table_tells_what_the_issue_names(finished_run: Path, command: Any) -> None:
    # Its own recipe belongs to it.
    shown = command("run", finished_run / "recipe.yaml").stdout
    for word in [
        "top-1", "agreement with the teacher", "interval", "bits", "file size", "latency",
        "integer kernels", "certificate", "holds", str(finished_run), "report.html",
    ]:  # fmt: skip
        assert word in shown


def test_a_lost_file_is_made_again_and_only_that(own_run: Path, command: Any) -> None:
    (own_run / "report.html").unlink()
    result = command("run", own_run / "recipe.yaml", "--out", own_run, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["done"] == ["report"]
    assert (own_run / "report.html").is_file()


def test_overwrite_keeps_the_stages_that_do_not_change(
    own_run: Path, command: Any, tiny: list[str]
) -> None:
    # Of the bits' own recipe the images would be others, too.
    recipe = ["--recipe", "practical_w8a8"]
    arguments = ["quantize", DIGITS, *tiny, *recipe, "--bits", "w4a8", "--out", own_run]
    refused = command(*arguments)
    assert refused.exit_code == 5
    assert "plan.bits: w8a8 there, w4a8 wanted" in refused.stderr
    taken = command(*arguments, "--overwrite", "--json")
    assert taken.exit_code == 0, taken.output
    told = json.loads(taken.stdout)
    assert "images" not in told["done"]
    assert {"student", "export"} <= set(told["done"])
    assert told["metrics"]["plan"]["bits"] == "w4a8"


def test_overwritten_with_given_images_nothing_of_the_made_ones_is_looked_at(
    own_run: Path, tmp_path: Path, command: Any
) -> None:
    data = arrays_of(held_out_images_path())
    given = tmp_path / "given.npz"
    np.savez(given, images=data["images"][:40], labels=data["labels"][:40])
    assert (own_run / "images" / "images.safetensors").is_file()
    result = command(
        "quantize", DIGITS, "--bits", "w8a8", "--images", given, "--device", "cpu",
        "--out", own_run, "--overwrite",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert not (own_run / "images" / "images.safetensors").exists()
    checked = command("check", own_run, "--json")
    assert checked.exit_code == 0, checked.output
    assert restore(own_run).fitted_images(None).layout != "image set"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--bits", "w0a4"], 2, "weights must have 2 to 8 bits"),
        (["--bits", "w4"], 2, "expected w<bits>a<bits>"),
        (["--bits", "w4a99"], 2, "activations must have 2 to 8 bits"),
        (["--images", "none", "--count", "5"], 2, "count: `images: none` has none to count"),
        (
            ["--images", "none", "--set", "refine.calibrate.activation_values=images"],
            2,
            "as it is set needs images",
        ),
        (["--images", "zerok"], 2, "Did you mean 'zeroq'?"),
        (["--images", "phots"], 2, "'phots' is no file or folder that exists, and no way to make"),
        (["--budget", "9bits"], 2, "weights have at most 8 bits"),
        (["--set", "plan.overrides.block.0.first=w8a8"], 2, "Did you mean 'blocks.0.first.conv'?"),
        (["--images", "missing/folder"], 2, "there is no such file or folder of images"),
        (["--set", "synthesize.stepz=3"], 2, "Did you mean 'steps'?"),
        (["--set", "synthesize.learning_rate=1e-3"], 2, "write 1.0e-3"),
        (["--plan", "integr"], 2, "Did you mean 'integer'?"),
        (["--count", "0"], 2, "synthesize.count"),
        (["--min-agreement", "95"], 2, "evaluate.min_agreement"),
        (["--model-args", "{"], 2, "not readable as JSON"),
        (["--mean", "a,b"], 2, "expected numbers with commas"),
        (["--recipe", "nothing"], 2, "No recipe is called 'nothing'"),
        (["--recipe", "practical_w8"], 2, "'practical_w8' in their names: practical_w8a8. A file"),
        (["--device", "tpu"], 2, "device"),
    ],
)
def test_a_wrong_option_is_explained_and_leaves_no_folder(
    tmp_path: Path, command: Any, arguments: list[str], code: int, expected: str
) -> None:
    result = command("quantize", DIGITS, *arguments, "--out", tmp_path / "r")
    assert result.exit_code == code
    assert expected in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "r").exists()


def test_a_single_image_is_refused_before_anything_is_fitted(tmp_path: Path, command: Any) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), (200, 30, 90)).save(tmp_path / "photos" / "one.png")
    result = command("quantize", DIGITS, "--images", tmp_path / "photos", "--out", tmp_path / "r")
    assert result.exit_code == 2
    assert "1 image to quantize with; at least 2 are needed" in result.stderr
    assert "calibrate:" not in result.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("place", ["a_file/r", "/proc/r"])
def test_a_folder_that_cannot_be_made_is_explained(
    tmp_path: Path, command: Any, place: str
) -> None:
    (tmp_path / "a_file").write_text("mine")
    result = command("quantize", DIGITS, "--out", tmp_path / place)
    assert result.exit_code == 5
    assert "Give another" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_teacher_is_explained_and_leaves_no_folder(tmp_path: Path, command: Any) -> None:
    result = command("quantize", "embedded:digits-resnt", "--out", tmp_path / "r")
    assert result.exit_code == 2
    assert "Did you mean 'digits-resnet'?" in result.stderr
    assert not (tmp_path / "r").exists()


def test_below_the_least_agreement_no_file_is_written(
    tmp_path: Path, command: Any, tiny: list[str]
) -> None:
    out = tmp_path / "r"
    result = command(
        "quantize", DIGITS, *tiny, "--recipe", "practical_w8a8", "--bits", "w2a2",
        "--min-agreement", "0.999", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 4, result.output
    assert "The limit is 99.9% (--min-agreement), so no file was written." in result.stderr
    assert "Layers that do most of it: " in result.stderr
    assert "w8a8" in result.stderr
    assert not (out / "model.onnx").exists()


def test_noise_is_named_in_the_head_of_the_page(
    tmp_path: Path, command: Any, tiny: list[str]
) -> None:
    out = tmp_path / "r"
    fewer = [word for word in tiny if word != "synthesize.steps=2"]
    fewer.remove("--set")
    result = command("quantize", DIGITS, *fewer, "--images", "noise", "--out", out, "-q")
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert "Gaussian NOISE" in page[: page.index("</header>")]


def test_real_images_are_split_into_fitted_and_judged(
    tmp_path: Path, command: Any, tiny: list[str]
) -> None:
    from emptyset.teachers.embedded import train_images_path

    out = tmp_path / "r"
    fewer = [word for word in tiny if word != "synthesize.steps=2"]
    fewer.remove("--set")
    result = command(
        "quantize", DIGITS, *fewer, "--images", train_images_path(), "--out", out, "--json"
    )
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["images"]["count"] == 8
    assert metrics["images"]["made"] is False
    assert "8 real images" in (out / "report.html").read_text()


def test_a_recipe_with_a_typo_names_file_and_line(tmp_path: Path, command: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("teacher: {name: 'embedded:digits-resnet'}\nsynthesize: {methd: zeroq}\n")
    result = command("run", path, "--out", tmp_path / "r")
    assert result.exit_code == 2
    assert "mine.yaml:2: synthesize.methd: zeroq has no such setting." in result.stderr
    assert "Did you mean 'method'?" in result.stderr

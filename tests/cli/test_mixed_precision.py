"""Mixed precision by option, by recipe and by Python: one plan, one certified file."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

import emptyset
from emptyset.cli.app import app
from emptyset.job.held_out import split
from emptyset.job.mixed_precision import recorded_overrides
from emptyset.job.restored import restore
from emptyset.recipe import Recipe
from emptyset.run_folder import RunFolder
from emptyset.teachers.embedded import train_images_path

PAGE = Path(__file__).parents[2] / "docs" / "mixed_precision.md"
DIGITS = "embedded:digits-resnet"
IMAGES = ["--images", str(train_images_path()), "--count", "16", "--device", "cpu"]
QUICK = [
    "--set", "evaluate.layer_images=2", "--set", "evaluate.latency_rounds=0",
    "--set", "evaluate.quality_images=0", "--set", "refine=[{method: calibrate}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the page, on few images. Read only."""
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\nemptyset (.*?)--out \S+\n```", text)
    assert f"{DIGITS} --bits w8a8 --budget 0.6" in command
    out = tmp_path_factory.mktemp("runs") / "mixed"
    arguments = [*shlex.split(command), *IMAGES, *QUICK, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return out


def decided(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "mixed_precision.json").read_text())
    return found


def test_the_certificate_of_a_file_of_mixed_bits_holds(mixed_run: Path) -> None:
    metrics = json.loads((mixed_run / "metrics.json").read_text())
    assert metrics["certificate"]["holds"] is True
    assert metrics["file"]["integer_share"] == 1.0
    assert metrics["mixed_precision"] == decided(mixed_run)
    bits = {row["name"]: row["weight_bits"] for row in metrics["layers"]}
    assert set(bits.values()) == {4, 8}
    for layer in decided(mixed_run)["layers"]:
        assert bits[layer["name"]] == layer["options"][layer["chosen"]]["weights"]


def test_the_weights_in_the_file_take_the_bytes_that_were_promised(mixed_run: Path) -> None:
    promised = decided(mixed_run)["chosen"]["size_bytes"]
    narrow = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    graph = onnx.load(mixed_run / "model.onnx").graph
    stored = 0.0
    for tensor in graph.initializer:
        values = int(torch.tensor(tensor.dims).prod()) if tensor.dims else 1
        if len(tensor.dims) > 1 and tensor.data_type in narrow:
            stored += values / 2
        elif len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.INT8:
            stored += values
    assert stored == promised
    whole = sum(layer["weights"] for layer in decided(mixed_run)["layers"])
    assert stored <= 0.6 * whole


def test_python_chooses_the_same_plan(mixed_run: Path) -> None:
    teacher = emptyset.load(DIGITS)
    source = emptyset.images_from(train_images_path(), teacher)
    images = split(source, seed=0, limit=16)[0]
    found = emptyset.mixed_precision(teacher, images, budget=0.6)
    assert json.loads(json.dumps(found.to_json())) == decided(mixed_run)
    student = emptyset.prepare(teacher, overrides=found.overrides)
    assert student.layer_bits == restore(mixed_run).student.layer_bits


def test_a_recipe_says_the_same(mixed_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(
        f"teacher: {{name: '{DIGITS}'}}\ndevice: cpu\n"
        f"images: {train_images_path()}\ncount: 16\n"
        "mixed_precision: {budget: 0.6}\n"
        "evaluate: {layer_images: 2, latency_rounds: 0, quality_images: 0}\n",
        encoding="utf-8",
    )
    assert Recipe.load(path).hash() == Recipe.load(mixed_run / "recipe.yaml").hash()
    again = CliRunner().invoke(app, ["run", str(path), "--out", str(mixed_run), "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["done"] == []


def test_the_page_shows_the_curve_and_each_layers_bits(mixed_run: Path) -> None:
    page = (mixed_run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "mixed within 0.6" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = page[page.index("<h2>Layers</h2>") :]
    assert "w4a8" in shown
    assert "w8a8" in shown


def test_without_a_budget_nothing_is_left_of_the_choice(
    mixed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    own = Path(shutil.copytree(mixed_run, tmp_path / "run"))
    recipe = Recipe.load(own / "recipe.yaml").model_copy(update={"mixed_precision": None})

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emptyset.pipeline.refine", stop)
    with pytest.raises(KeyboardInterrupt):
        emptyset.run(recipe, own, overwrite=True)
    assert not (own / "mixed_precision.json").exists()
    assert recorded_overrides(*RunFolder.open(own)) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget", "4"], "a share of the 8-bit size"),
        (["--budget", "3apples"], "unknown unit 'apples'"),
        (["--set", "mixed_precision.weights=[4, 8]"], "mixed_precision.budget: is required"),
        (["--budget", "4bits", "--set", "mixed_precision.weights=[1, 8]"], "from 2 to 8"),
        (["--budget", "4bits", "--set", "mixed_precision.count=0"], "mixed_precision.count"),
        (["--budget", "4bits", "--set", "mixed_precision.wieghts=[4]"], "Did you mean 'weights'"),
        (["--budget", "4bits", "--set", "plan.overrides.*=w8a8"], "nothing to choose"),
        (["--budget", "0.3"], "the least that these widths reach is 0.5"),
    ],
)
def test_a_wrong_budget_is_explained_before_images_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("images were made")

    monkeypatch.setattr("emptyset.pipeline.synthesize", never)
    out = tmp_path / "r"
    result = CliRunner().invoke(app, ["quantize", DIGITS, *arguments, "--out", str(out)])
    assert result.exit_code == 2
    assert expected in result.stderr
    assert not out.exists()


def test_the_folder_of_a_run_is_named_after_its_budget() -> None:
    from emptyset.cli.quantize import bits_of, folder_name
    from emptyset.job import recipe_for

    recipe = recipe_for({"name": DIGITS}, bits="w4a8", budget="4.5 bits")
    assert folder_name(DIGITS, bits_of(recipe)) == "digits-resnet-w4a8-4.5bits"
    assert folder_name(DIGITS, bits_of(recipe_for({"name": DIGITS}))) == "digits-resnet-w8a8"

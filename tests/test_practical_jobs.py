"""Whole jobs with a recipe that was chosen by bits."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import emptyset
from emptyset.cli.app import app
from emptyset.recipe import Recipe
from emptyset.run_folder import LOG

DIGITS = "embedded:digits-resnet"


def test_the_whole_job_runs_what_was_chosen_and_says_so_everywhere(tmp_path: Path) -> None:
    out = tmp_path / "r"
    few = [
        "synthesize.steps=10", "refine.genie.steps=2", "refine.genie.batch_size=4",
        "refine.distill.steps=2", "refine.distill.batch_size=4", "evaluate.layer_images=2",
        "evaluate.latency_rounds=1", "evaluate.quality_images=0",
    ]  # fmt: skip
    settings = itertools.chain.from_iterable(("--set", change) for change in few)
    arguments = ["quantize", DIGITS, "--bits", "w4a4", "--count", "6", *settings]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Recipe for w4a4")]
    assert "genie (2 steps), then distill (2 steps), on 6 images of dffg" in line
    assert Recipe.load(out / "recipe.yaml").about == line
    assert json.loads((out / "metrics.json").read_text())["recipe"]["about"] == line
    assert "practical_w4a4, which is genie (2 steps)" in (out / "report.html").read_text()
    assert line in (out / LOG).read_text()
    assert json.loads((out / "certificate.json").read_text())["holds"]


def test_the_network_is_loaded_once_and_memory_reaches_reconstruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def stop(_student: Any, _images: Any, method: str, **settings: Any) -> None:
        seen.append((method, settings))
        raise KeyboardInterrupt

    def twice(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was loaded twice")

    monkeypatch.setattr("emptyset.pipeline.refine", stop)
    monkeypatch.setattr("emptyset.job.load_from", twice)
    with pytest.raises(KeyboardInterrupt):
        emptyset.quantize(
            DIGITS, "w4a8", out=tmp_path / "r", count=4, memory=0.75,
            settings=["synthesize.steps=10"],
        )  # fmt: skip
    ((method, settings),) = seen
    assert method == "genie"
    assert (settings["memory"], settings.get("batch_size", 32)) == (0.75, 32)

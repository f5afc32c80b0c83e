"""What each block came to: told in the metrics and on the page, after a kill as well."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import emptyset
from emptyset import pipeline
from emptyset.graph.blocks import find_blocks
from emptyset.recipe import Recipe

pytestmark = pytest.mark.usefixtures("judged_on_few")

DIGITS = "embedded:digits-resnet"


def recipe() -> Recipe:
    return Recipe.parse(
        {
            "teacher": {"name": DIGITS}, "device": "cpu", "plan": {"bits": "w3a4"},
            "synthesize": {"method": "noise", "count": 8},
            "refine": [
                {"method": "calibrate"},
                {"method": "brecq", "steps": 3, "activation_steps": 2, "batch_size": 4},
                {"method": "bias_correction", "statistics": "empirical"},
            ],
            "evaluate": {"layer_images": 2, "latency_rounds": 0, "quality_images": 0},
        }
    )  # fmt: skip


class KilledError(Exception):
    pass


def killed_in(method: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refine = pipeline.refine

    def until(student: Any, images: Any, name: str, **more: Any) -> Any:
        if name == method:
            raise KilledError
        return refine(student, images, name, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "refine", until)
        with pytest.raises(KilledError):
            emptyset.run(recipe(), out, keep_every=0.0)


def test_a_run_that_was_killed_tells_what_the_whole_one_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = emptyset.run(recipe(), tmp_path / "whole").metrics["training"]
    killed_in("bias_correction", tmp_path / "killed", monkeypatch)
    resumed = emptyset.run(recipe(), tmp_path / "killed").metrics["training"]
    assert resumed == whole
    assert [(one["refiner"], one["course"]) for one in whole] == [
        ("brecq", "brecq.weights"), ("brecq", "brecq.activations"),
    ]  # fmt: skip
    names = [b.name for b in find_blocks(emptyset.prepare(emptyset.load(DIGITS), "w3a4"))]
    # The last block learns the scale of the means that its layer reads.
    for record, steps in zip(whole, (3, 2), strict=True):
        assert [block["block"] for block in record["blocks"]] == names
        assert [block["steps"] for block in record["blocks"]] == [steps] * len(names)
        assert all(block["final"] <= block["start"] for block in record["blocks"])
    for name in ("whole", "killed"):
        stored = json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        assert stored["training"] == whole
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        found = re.findall(r"<details><summary>(brecq\S+):.*?</summary>(.*?)</details>", page, re.S)
        assert [course for course, _ in found] == ["brecq.weights", "brecq.activations"]
        for _, table in found:
            assert re.findall(r'<td class="name">(.*?)</td>', table) == names

"""A run with a source tells of its generator; a run without one does not."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import emptyset
from emptyset.evaluate.pictured_samples import GeneratorPictures
from emptyset.generators.generator_file import save_generator
from emptyset.images.image_set import ImageSet
from emptyset.job.context import RunContext
from emptyset.job.generator_report import PICTURES, generator_pictures_of, measured_generator
from emptyset.job.generator_report import _measured as measure
from emptyset.job.image_stages import KnownImages
from emptyset.job.restored import rewrite_page
from emptyset.monitor import SILENT
from emptyset.recipe import Recipe
from emptyset.run_folder import GENERATOR, STAGES, RunFolder, Workplace

DIGITS = "embedded:digits-resnet"
PLAN = {"name": "every_layer", "bits": "w4a4", "batch_norm": "frozen"}
QUICK = {"layer_images": 2, "latency_rounds": 0, "quality_images": 3}


def recipe(source: dict[str, Any], **evaluate: Any) -> Recipe:
    refine = {"method": "distill", "steps": 4, "batch_size": 4, "epoch": 2}
    preset = "zaq" if source["method"] == "zaq" else "gdfq"
    return Recipe.parse(
        {
            "teacher": {"name": DIGITS}, "device": "cpu", "plan": PLAN,
            "source": {"count": 4, "widths": [5, 4], **source},
            "refine": [refine | {"preset": preset}], "evaluate": QUICK | evaluate,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "qimera"
    emptyset.run(recipe({"method": "qimera", "mapped": 6}), out)
    return out


def test_the_report_of_a_run_with_a_source_tells_of_its_generator(
    finished: Path, tmp_path: Path
) -> None:
    metrics = emptyset.run(recipe({"method": "qimera", "mapped": 6}), finished).metrics
    boundary = metrics["class_boundary"]
    # As few pairs as there are images that the report may look at.
    assert (boundary["pairs"], boundary["of_pairs"], boundary["steps"]) == (3, 45, 100)
    pictures = GeneratorPictures.load(finished / PICTURES)
    # Digits come with scans that nobody trained on: real images, as many as four times three.
    assert pictures.feature_map is not None
    assert pictures.feature_map.real is not None
    assert len(pictures.feature_map.real.places) == 12
    page = (finished / "report.html").read_text(encoding="utf-8")
    for text in ("<h2>Generator</h2>", "superposed embeddings", "Samples in feature space"):
        assert text in page, text
    rewrite_page(finished, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("source", [True, False])
def test_what_was_told_goes_when_nothing_is_asked_for(
    finished: Path, tmp_path: Path, source: bool
) -> None:
    own = Path(shutil.copytree(finished, tmp_path / "own"))
    folder, _ = RunFolder.open(own)
    assert generator_pictures_of(folder) is not None
    less = recipe({"method": "qimera", "mapped": 6}, quality_images=0)
    if not source:
        less = Recipe.parse({"teacher": {"name": DIGITS}})
    context = RunContext(folder, less, emptyset.load(DIGITS), SILENT)
    fitted = KnownImages(ImageSet(torch.zeros(2, 1, 16, 16)), "zeros", "zeros")
    measured_generator(context, fitted, None)
    assert generator_pictures_of(folder) is None
    assert not (own / PICTURES).exists()
    assert "class_boundary" not in json.loads((own / STAGES).read_text())["stages"]


def test_a_generator_without_labels_is_pictured_without_a_table(tmp_path: Path) -> None:
    teacher = emptyset.load(DIGITS)
    save_generator(emptyset.source(teacher, "zaq", widths=(5, 4), latent=6), tmp_path / GENERATOR)
    at = Workplace(tmp_path / "aside", SILENT)
    context: Any = SimpleNamespace(
        folder=RunFolder(tmp_path), recipe=recipe({"method": "zaq", "latent": 6}), teacher=teacher
    )
    assert measure(context, None, at) == {"boundary": None}
    pictures = GeneratorPictures.load(tmp_path / "aside" / PICTURES)
    assert "zaq makes images without labels" in pictures.missing[0]
    assert pictures.grid.tiles.shape[:2] == (10, 8)


def test_a_collapsed_generator_withholds_its_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = emptyset.load(DIGITS)
    source = emptyset.source(teacher, "qimera", widths=(5, 4), mapped=6)
    with torch.no_grad():
        # Every class has the same embedding.
        source.generator.condition.embedding.weight.copy_(torch.ones(1, 1))
    save_generator(source, tmp_path / GENERATOR)
    context: Any = SimpleNamespace(
        folder=RunFolder(tmp_path), recipe=recipe({"method": "qimera", "mapped": 6}),
        teacher=teacher,
    )  # fmt: skip
    assert measure(context, None, Workplace(tmp_path, SILENT)) == {"boundary": None}
    missing = GeneratorPictures.load(tmp_path / PICTURES).missing
    assert any("The table of class boundaries: qimera: both classes" in one for one in missing)

"""`images: none`: the whole job without any image, and what it says it does not know."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import emptyset
from emptyset.errors import ImagesError, RecipeError, UnsupportedModelError
from emptyset.images.input_spec import InputSpec
from emptyset.images.no_images import NO_IMAGES, PROBES, gaussian_probes
from emptyset.job import recipe_for
from emptyset.job.restored import restore
from emptyset.measurement import measure
from emptyset.recipe import Recipe
from emptyset.recipe_without_images import DATA_FREE_REFINERS
from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"
QUICK = ["evaluate.layer_images=2", "evaluate.latency_rounds=1", "export.certificate_images=12"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of a network that comes with images to judge on."""
    out = tmp_path_factory.mktemp("runs") / "judged"
    return emptyset.quantize(DIGITS, out=out, images="none", settings=QUICK)


@pytest.fixture(scope="module")
def unjudged(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same where no image exists at all, as for a network of one's own."""
    out = Path(shutil.copytree(run.folder, tmp_path_factory.mktemp("runs") / "unjudged"))
    (out / "report.html").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emptyset.job.image_stages.labelled_path", lambda _: None)
        return emptyset.quantize(DIGITS, out=out, images="none", settings=QUICK)


def test_the_file_is_nearly_as_good_as_the_float_network(run: Any) -> None:
    judged = run.metrics["evaluation"]
    assert judged["quantized"]["top1"] >= judged["teacher"]["top1"] - 0.01
    assert run.metrics["certificate"]["holds"]
    assert run.metrics["file"]["integer_share"] == 1.0


def test_no_image_is_made_or_kept(run: Any) -> None:
    assert not list(run.folder.rglob("images.safetensors"))
    assert "images" not in run.done
    assert run.metrics["images"] == {"source": "none", "made": False, "count": 0, "history": []}
    assert run.metrics["image_quality"] is None


def test_certificate_metrics_and_page_say_what_the_probes_were_for(run: Any) -> None:
    certificate = json.loads((run.folder / "certificate.json").read_text())
    assert certificate["image_source"] == PROBES
    assert certificate["images"] == 12
    page = run.report.read_text()
    assert "No image was used" in page
    assert "Gaussian probes" in page
    assert "<img" not in page


def test_what_was_not_measured_is_said_and_nothing_is_made_up(unjudged: Any) -> None:
    metrics = unjudged.metrics
    assert metrics["evaluation"]["agreement"] is None
    assert metrics["evaluation"]["quantized"] is None
    assert "no image to compare" in metrics["evaluation"]["not_measured"]
    assert metrics["guard"] is None
    assert metrics["layers"] == []
    page = unjudged.report.read_text()
    assert "Not measured." in page
    assert "emptyset evaluate RUN --images DIR" in page
    assert "<h2>Layers</h2>" not in page
    from emptyset.report.facts import result_rows

    rows = {row.name: row for row in result_rows(metrics)}
    assert rows["agreement with the teacher"].after == "not measured"
    assert "probes" in rows["certificate"].remark
    assert rows["certificate"].after == "holds"


def test_nothing_is_run_twice_and_the_run_can_be_read_back(run: Any) -> None:
    again = emptyset.quantize(DIGITS, out=run.folder, images="none", settings=QUICK)
    assert again.done == ()
    restored = restore(run.folder)
    probes = restored.fitted_images(None)
    assert len(probes) == 12
    assert emptyset.certify(run.folder / "model.onnx", restored.student, probes).holds
    images, _ = restored.judged_images(None)
    found = measure(restored.student, restored.student.teacher, images)
    assert found.quantized is not None
    assert found.quantized.top1 == pytest.approx(
        run.metrics["evaluation"]["quantized"]["top1"], abs=0.003
    )


def test_nothing_to_judge_on_is_an_error_when_it_is_asked_for(
    unjudged: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("emptyset.job.restored.labelled_path", lambda _: None)
    with pytest.raises(ImagesError, match="holds no images to judge on"):
        restore(unjudged.folder).judged_images(None)
    monkeypatch.setattr("emptyset.job.image_stages.labelled_path", lambda _: None)
    with pytest.raises(RecipeError, match=r"min_agreement: without any image, agreement"):
        emptyset.quantize(DIGITS, out=tmp_path / "r", images="none", min_agreement=0.9)


def test_a_folder_taken_over_from_a_run_with_images_keeps_none_of_them(
    run: Any, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(run.folder, tmp_path / "r"))
    few = ["synthesize.count=4", "synthesize.steps=1", *QUICK]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emptyset.pipeline.refine", stop)
        with pytest.raises(KeyboardInterrupt):
            emptyset.quantize(DIGITS, out=out, settings=few, overwrite=True)
    assert (out / "images" / "images.safetensors").exists()
    back = emptyset.quantize(DIGITS, out=out, images="none", settings=QUICK, overwrite=True)
    assert not (out / "images" / "images.safetensors").exists()
    assert back.metrics["images"] == run.metrics["images"]
    assert back.metrics["evaluation"] == run.metrics["evaluation"]


def test_the_data_free_refiners_are_the_default_and_others_may_be_named() -> None:
    recipe = recipe_for({"name": DIGITS}, images="none", bits="w4a8")
    assert [s.method for s in recipe.refine] == [s["method"] for s in DATA_FREE_REFINERS]
    assert Recipe.parse(recipe.to_data()) == recipe
    written = Recipe.parse({"teacher": {"name": DIGITS}, "images": "none"})
    assert written.refine == recipe.refine
    own = Recipe.parse(
        {
            "teacher": {"name": DIGITS}, "images": "none",
            "refine": [{"method": "calibrate", "activation_values": "batch_norm"}],
        }
    )  # fmt: skip
    assert len(own.refine) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"refine": [{"method": "calibrate"}]}, "refine.0.method: 'calibrate' as it is set needs"),
        (
            {"refine": [{"method": "bias_correction", "statistics": "empirical"}]},
            "Without images: .*calibrate with activation_values batch_norm",
        ),
        ({"refine": [{"method": "distill"}]}, "'distill' as it is set needs images"),
        ({"count": 5}, "count: `images: none` has none to count"),
        ({"select": [{"method": "energy"}]}, "select: `images: none` has none to select from"),
        ({"synthesize": {"method": "zeroq"}}, "either `images` or `synthesize`"),
        ({"mixed_precision": {"budget": "0.6"}}, "mixed_precision: measures layers on images"),
    ],
    ids=["calibrate", "empirical", "distill", "count", "select", "synthesize", "mixed"],
)
def test_what_needs_images_is_refused_before_anything_runs(
    section: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse({"teacher": {"name": DIGITS}, "images": "none"} | section)


def test_a_network_without_batch_norm_is_refused_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_nets.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), "
        "nn.Linear(4 * 6 * 6, 5))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {
        "model": "bare_nets:build", "input": "3x8x8", "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"only BatchNorm tells .* --images DIR"):
        emptyset.quantize("file:", out=tmp_path / "r", images="none", teacher_options=options)


def test_probes_are_pixels_and_the_same_for_the_same_seed() -> None:
    spec = InputSpec((3, 9, 7), (0.5, 0.4, 0.45), (0.25, 0.2, 0.3))
    probes = gaussian_probes(spec, 40, seed=3)
    assert torch.equal(probes.images, gaussian_probes(spec, 40, seed=3).images)
    assert not torch.equal(probes.images, gaussian_probes(spec, 40, seed=4).images)
    pixels = spec.pixels(probes.images)
    torch.testing.assert_close(spec.normalise(pixels), probes.images, atol=1e-6, rtol=0)
    assert pixels.mean().item() == pytest.approx(0.5, abs=0.01)
    assert len(NO_IMAGES) == 0
    assert list(NO_IMAGES.batches(4)) == []


def test_the_public_functions_do_the_same_without_images(tmp_path: Path) -> None:
    teacher = emptyset.load(DIGITS)
    student = emptyset.prepare(teacher, "w8a8")
    for section in DATA_FREE_REFINERS:
        settings = {key: value for key, value in section.items() if key != "method"}
        emptyset.refine(student, None, section["method"], **settings)
    images = emptyset.pipeline.images_from(held_out_images_path(), teacher)
    found = measure(student, teacher, images.image_set(200))
    assert found.quantized is not None
    assert found.quantized.top1 > 0.97

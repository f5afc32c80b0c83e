"""A whole run: killed at random moments it ends with the same result; the public functions fit."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import emptyset
from emptyset.cli.app import app
from emptyset.errors import CertificateError, UnsupportedModelError
from emptyset.images.folder import load_images
from emptyset.images.image_set import ImageSet
from emptyset.job import recipe_for
from emptyset.job.held_out import first, split
from emptyset.recipe import Recipe
from emptyset.run_folder import LOG, PARTIAL, file_digest
from emptyset.teachers.embedded import held_out_images_path

pytestmark = pytest.mark.usefixtures("judged_on_few")

DIGITS = "embedded:digits-resnet"
KILLED = {
    "teacher": {"name": DIGITS},
    "device": "cpu",
    "synthesize": {"method": "zeroq", "count": 20, "batch_size": 5, "steps": 30},
    "refine": [{"method": "calibrate", "batch_size": 2}],
    # No images to look at: what is compared is what was made and trained.
    "evaluate": {"layer_images": 2, "latency_rounds": 0, "quality_images": 0},
}
SCRIPT = """
import json, sys, torch, emptyset
from emptyset.cli.quiet import quieten_imports
quieten_imports()
torch.set_num_threads(1)
recipe = emptyset.Recipe.parse(json.loads(sys.argv[1]))
emptyset.run(recipe, sys.argv[2], keep_every=0.0)
"""


def started(out: Path) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(KILLED), str(out)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_during(stage: str, out: Path, delay: float) -> bool:
    """Kill with SIGKILL `delay` seconds into the stage; whether it was still at it."""
    process = started(out)
    log = out / LOG
    before = log.read_text().count(f"{stage}: started") if log.is_file() else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_text().count(f"{stage}: started") > before:
            break
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return f"{stage}: finished" not in log.read_text()


def results(out: Path) -> dict[str, str]:
    names = ("images/images.safetensors", "student.safetensors", "model.onnx")
    return {name: file_digest(out / name) for name in names}


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param((("images", 0.6), ("student", 0.0)), id="two"),
        pytest.param(
            (("images", 0.0), ("images", 0.6), ("student", 0.0), ("student", 0.5)),
            marks=pytest.mark.slow,
            id="four",
        ),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_files(
    kills: tuple[tuple[str, float], ...], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    emptyset.run(Recipe.parse(KILLED), whole)
    moment = random.Random(time.time_ns())
    hits = 0
    # A kill right at the start of a stage is one that no machine is too fast for.
    for stage, longest in kills:
        hits += kill_during(stage, killed, moment.uniform(0.0, longest))
    emptyset.run(Recipe.parse(KILLED), killed)
    assert hits >= 1, "every kill came too late to test anything"
    assert results(killed) == results(whole)
    assert not (killed / PARTIAL).exists()


def test_what_a_killed_run_had_made_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for({"name": DIGITS}, count=4, settings=["synthesize.steps=2"], device="cpu")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("emptyset.pipeline.refine", stop)
        with pytest.raises(KeyboardInterrupt):
            emptyset.run(recipe, tmp_path / "r")
    monkeypatch.setattr("emptyset.pipeline.synthesize", stop)
    monkeypatch.setattr("emptyset.pipeline.export", stop)
    with pytest.raises(KeyboardInterrupt):
        emptyset.run(recipe, tmp_path / "r")
    done = (tmp_path / "r" / LOG).read_text()
    assert done.count("images: started") == 1
    assert "student: finished" in done


def test_a_teacher_without_batch_norm_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "plain_nets.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), "
        "nn.Linear(4 * 6 * 6, 5))\n",
        encoding="utf-8",
    )
    options = {
        "model": "plain_nets:build", "input": "3x8x8", "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UnsupportedModelError, match="--images DIR"):
            emptyset.quantize("file:", out=tmp_path / "r", teacher_options=options)
    finally:
        sys.path.remove(str(tmp_path))
    # The same folder is free for the next try, with images.
    assert not (tmp_path / "r").exists()


def test_without_labels_the_file_is_judged_on_images_of_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emptyset.job.image_stages.labelled_path", lambda _: None)
    result = emptyset.quantize(
        DIGITS, out=tmp_path / "r", count=6,
        settings=["synthesize.steps=2", "evaluate.layer_images=2", "evaluate.latency_rounds=0"],
    )  # fmt: skip
    judged = result.metrics["evaluation"]
    assert judged["teacher"] is None
    assert "another seed" in judged["on"]
    made = ImageSet.load(tmp_path / "r" / "images")
    others = ImageSet.load(tmp_path / "r" / "images" / "judged")
    assert len(others) == 6
    assert not torch.equal(made.images, others.images)
    assert "No labelled photos were given" in result.report.read_text()


def test_a_file_that_fails_its_certificate_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from emptyset import pipeline

    certify = pipeline.certify
    settings = ["synthesize.steps=2", "evaluate.layer_images=2", "evaluate.latency_rounds=1"]
    arguments: dict[str, Any] = {"out": tmp_path / "r", "count": 4, "settings": settings}
    emptyset.quantize(DIGITS, **arguments)
    assert (tmp_path / "r" / "model.onnx").is_file()

    def faulty(*values: Any, **named: Any) -> Any:
        return replace(certify(*values, **named), holds=False, fault="node conv: 3 codes off")

    monkeypatch.setattr(pipeline, "certify", faulty)
    arguments["settings"] = [*settings, "export.certificate_images=3"]
    with pytest.raises(CertificateError, match="node conv: 3 codes off") as caught:
        emptyset.quantize(DIGITS, **arguments, overwrite=True)
    assert caught.value.exit_code == 3
    left = {path.name for path in (tmp_path / "r").iterdir()}
    assert "model.rejected.onnx" in left
    assert "certificate.json" in left
    assert not left & {"model.onnx", "report.html", "metrics.json"}
    # As the message says, it can be seen again.
    assert f"emptyset check {tmp_path / 'r'}" in str(caught.value)
    seen = CliRunner().invoke(app, ["check", str(tmp_path / "r"), "-q"])
    assert isinstance(seen.exception, SystemExit)
    assert seen.exit_code == 3
    assert "model.rejected.onnx: does not compute" in " ".join(seen.stderr.split())

    monkeypatch.setattr(pipeline, "certify", certify)
    emptyset.quantize(DIGITS, **(arguments | {"settings": settings}), overwrite=True)
    left = {path.name for path in (tmp_path / "r").iterdir()}
    assert "model.rejected.onnx" not in left
    assert left >= {"model.onnx", "report.html", "metrics.json"}


def test_each_public_function_can_be_used_alone(tmp_path: Path) -> None:
    teacher = emptyset.load(DIGITS)
    images = emptyset.synthesize(teacher, "zeroq", count=6, seed=1, steps=2)
    kept = emptyset.select(images, teacher, "energy")
    student = emptyset.prepare(teacher, "w4a4", plan="integer")
    emptyset.refine(student, images, "calibrate", batch_size=3)
    artefact = emptyset.export(student, tmp_path / "model.onnx")
    assert artefact.path == tmp_path / "model.onnx"
    assert emptyset.certify(artefact.path, student, images).holds
    found = emptyset.measure(artefact.path, teacher, images)
    assert 0 <= found.agreement.share <= 1
    assert len(kept) <= len(images)


def test_a_wrong_setting_of_a_function_names_the_nearest() -> None:
    teacher = emptyset.load(DIGITS)
    with pytest.raises(emptyset.EmptysetError, match="Did you mean 'steps'"):
        emptyset.synthesize(teacher, "zeroq", count=6, stpes=2)
    with pytest.raises(emptyset.EmptysetError, match="expected a whole number"):
        emptyset.synthesize(teacher, "zeroq", count=6, steps="many")


def test_given_images_are_split_without_overlap() -> None:
    teacher = emptyset.load(DIGITS)
    source = load_images(held_out_images_path(), teacher.input)
    fitted, judged = split(source, seed=3, limit=100)
    assert judged is not None
    assert len(fitted) == 100
    assert len(judged) == round(0.2 * 797)
    assert not set(fitted.indices.tolist()) & set(judged.indices.tolist())
    # Fewer images to fit to do not change who judges.
    assert torch.equal(split(source, seed=3, limit=50)[1].indices, judged.indices)  # type: ignore[union-attr]
    assert split(source.limited(9), seed=3)[1] is None
    assert len(first(fitted, 7)) == 7


def test_recipe_options_replace_only_what_they_name() -> None:
    base = Recipe.parse(
        {"teacher": {"name": "timm:other"}, "seed": 5, "plan": {"bits": "w4a4"},
         "synthesize": {"method": "zeroq", "count": 30, "steps": 3}}
    )  # fmt: skip
    recipe = recipe_for({"name": DIGITS}, base=base, count=31)
    assert recipe.teacher.name == DIGITS
    assert recipe.seed == 5
    assert recipe.plan.bits == "w4a4"
    assert recipe.synthesize is not None
    assert (recipe.synthesize.count, recipe.synthesize.settings()) == (31, {"steps": 3})
    changed = recipe_for({"name": DIGITS}, base=base, images="noise", bits="w8a8")
    assert changed.synthesize is not None
    assert (changed.synthesize.method, changed.synthesize.settings()) == ("noise", {})
    real = recipe_for({"name": DIGITS}, base=base, images=str(held_out_images_path()), count=12)
    assert real.synthesize is None
    assert real.count == 12
    # What counted images on disk counts no made ones.
    for images, count, made in (("noise", None, 1024), ("noise", 7, 7), ("none", None, None)):
        other = recipe_for({"name": DIGITS}, base=real, images=images, count=count)
        assert other.count is None
        assert (other.synthesize.count if other.synthesize else None) == made


def test_a_network_trained_on_since_is_quantized_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moving_nets.py").write_text(
        "import pathlib\n\nimport torch\nfrom torch import nn\n\n\ndef build():\n"
        "    torch.manual_seed(int(pathlib.Path(__file__).with_name('seed').read_text()))\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    options: dict[str, Any] = {
        "out": tmp_path / "r", "images": "noise", "count": 8,
        "teacher_options": {
            "model": "moving_nets:build", "input": "1x8x6", "mean": [0.5], "std": [0.25],
        },
        "settings": ["evaluate.quality_images=0", "evaluate.latency_rounds=0"],
    }  # fmt: skip
    hashes = []
    for seed, again in (("0", False), ("0", True), ("7", False)):
        (tmp_path / "seed").write_text(seed, encoding="utf-8")
        result = emptyset.quantize("file:", **options)
        assert (result.done == ()) is again
        hashes.append(result.metrics["teacher"]["weights_hash"])
    assert hashes[0] == hashes[1] != hashes[2]

"""`emptyset evaluate IMAGES --teacher T`: what images are worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_arrays import arrays_of

import emptyset
from emptyset.evaluate.image_quality import image_quality
from emptyset.images.folder import load_images
from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "dffg"
    teacher = emptyset.load(DIGITS)
    emptyset.synthesize(teacher, "dffg", count=12, steps=4, snapshots=2).save(path)
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    data = arrays_of(held_out_images_path())
    np.savez(tmp_path / "real.npz", images=data["images"][:20], labels=data["labels"][:20])
    return tmp_path / "real.npz"


def test_made_and_real_images_are_measured_alike(
    made: Path, real: Path, tmp_path: Path, command: Any
) -> None:
    page = tmp_path / "sub" / "page.html"
    arguments = ["evaluate", made, "--teacher", DIGITS, "--real", real, "--device", "cpu", "-q"]
    result = command(*arguments, "--json", "--report", page)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    teacher = emptyset.load(DIGITS)
    for name, path in (("images", made), ("real", real)):
        given = load_images(path, teacher.input)
        assert told[name] == json.loads(
            json.dumps(image_quality(given, teacher, batch_size=12).to_json())
        )
    assert told["real"]["diversity"]["class_agreement"] > 0.9
    text = page.read_text(encoding="utf-8")
    assert str(made) in text
    assert ">real</div>" in text
    shown = command(*arguments).stdout
    assert "images (12)" in shown
    assert "real (20)" in shown
    assert "class agreement" in shown


def test_variances_and_a_limit(made: Path, command: Any) -> None:
    arguments = ["evaluate", made, "--teacher", DIGITS, "--device", "cpu", "--json", "-q"]
    plain = json.loads(command(*arguments, "--limit", "6").stdout)
    squared = json.loads(command(*arguments, "--limit", "6", "--variance").stdout)
    assert plain["images"]["count"] == 6
    assert plain["real"] is None
    assert plain["images"]["distance"]["sum_l2"] != squared["images"]["distance"]["sum_l2"]
    assert plain["images"]["diversity"] == squared["images"]["diversity"]


def test_clip_is_asked_where_one_is_named(
    made: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emptyset.evaluate.clip_similarity import ClipEncoder

    class Flat(ClipEncoder):
        """The mean colour stands for the image."""

        def __init__(self) -> None:
            self.name = "flat"

        def embeddings(self, pixels_NCHW: Any) -> Any:
            return pixels_NCHW.mean((2, 3))

    named: list[str] = []

    def load(name: str, **_: Any) -> ClipEncoder:
        named.append(name)
        return Flat()

    monkeypatch.setattr(ClipEncoder, "load", staticmethod(load))
    arguments = ["evaluate", made, "--teacher", DIGITS, "--clip", "a/clip", "--device", "cpu", "-q"]
    told = json.loads(command(*arguments, "--json").stdout)
    assert named == ["a/clip"]
    # One channel: all embeddings point the same way.
    assert told["images"]["clip"]["similarity"] == pytest.approx(1.0)
    assert "CLIP similarity, all pairs" in command(*arguments).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--real", "x"], "--real: judges images, so it needs --teacher"),
        (["--limit", "3"], "--limit: judges images"),
        (["--mean", "0.1"], "--mean: a run's recipe says how its network is loaded"),
        (["--device", "cpu"], "--device: a run's recipe says"),
        (["--allow-pickle"], "--allow-pickle: a run's recipe says"),
        (["--teacher", DIGITS, "--images", "x"], "--images: belongs to a run"),
        (["--teacher", DIGITS, "--clip", "nobody/clip"], "name its folder"),
        (["--teacher", DIGITS, "--report", "."], "--report: . is a folder. Name the page"),
        (["--teacher", "embedded:digit"], "No embedded teacher is called 'digit'"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    made: Path, command: Any, options: list[str], said: str
) -> None:
    result = command("evaluate", made, *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_images_without_a_teacher_are_told_from_a_run(made: Path, command: Any) -> None:
    result = command("evaluate", made)
    assert result.exit_code == 5
    assert "holds images, not a run" in result.stderr
    assert "--teacher TEACHER" in result.stderr


def test_a_folder_of_nothing_is_refused(tmp_path: Path, command: Any) -> None:
    result = command("evaluate", tmp_path / "none", "--teacher", DIGITS)
    assert result.exit_code == 2
    assert "no such file or folder" in result.stderr

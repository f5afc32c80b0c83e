"""`emptyset evaluate GENERATOR --teacher T`, and how near made images are to real ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stored_arrays import arrays_of

import emptyset
from emptyset.evaluate.class_boundary import BoundarySettings, class_boundary
from emptyset.evaluate.nearest_neighbours import nearest_neighbours
from emptyset.generation import generator_from
from emptyset.generators.generator_file import save_generator
from emptyset.images.image_set import ImageSet
from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"


@pytest.fixture(scope="module")
def teacher() -> Any:
    return emptyset.load(DIGITS)


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory, teacher: Any) -> dict[str, Path]:
    """Untrained: what is tested is the command."""
    folder, found = tmp_path_factory.mktemp("generators"), {}
    for name, settings in (("qimera", {"mapped": 6}), ("zaq", {"latent": 6})):
        source = emptyset.source(teacher, name, widths=(5, 4), **settings)
        found[name] = folder / f"{name}.safetensors"
        save_generator(source, found[name])
    return found


@pytest.fixture
def real(tmp_path: Path) -> Path:
    data = arrays_of(held_out_images_path())
    np.savez(tmp_path / "real.npz", images=data["images"][:40], labels=data["labels"][:40])
    return tmp_path / "real.npz"


def told(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_command_tells_what_the_function_finds(
    generators: dict[str, Path], teacher: Any, command: Any
) -> None:
    arguments = ["evaluate", generators["qimera"], "--teacher", DIGITS, "--device", "cpu", "-q"]
    found = told(command(*arguments, "--pairs", "3", "--noise", "drawn", "--seed", "5", "--json"))
    source = generator_from(generators["qimera"], teacher)
    settings = BoundarySettings(pairs=3, noise="drawn")
    expected = class_boundary(source, teacher, settings, seed=5)
    assert found["class_boundary"] == json.loads(json.dumps(expected.to_json()))
    assert (found["method"], found["not_shown"]) == ("qimera", None)
    shown = command(*arguments, "--pairs", "2").stdout
    assert "superposed embeddings" in shown
    assert "2 of 45 pairs" in " ".join(shown.split())


def test_pictures_and_page_are_written_where_asked(
    generators: dict[str, Path], real: Path, tmp_path: Path, command: Any
) -> None:
    page, pictures = tmp_path / "sub" / "page.html", tmp_path / "pictures"
    result = command(
        "evaluate", generators["qimera"], "--teacher", DIGITS, "--device", "cpu", "-q",
        "--pairs", "1", "--real", real, "--limit", "30", "--pair", "3,5", "--report", page,
        "--pictures", pictures,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = {"feature_map.png", "class_path.png", "class_path_images.png", "images.png"}
    assert {path.name for path in pictures.iterdir()} == names
    for path in pictures.iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
    text = page.read_text(encoding="utf-8")
    assert "The way from class 3 to class 5" in text
    assert "30 real ones" in text
    assert "wrote" in result.stdout
    assert str(page) in result.stdout


def test_a_generator_without_labels_is_pictured_and_says_what_is_missing(
    generators: dict[str, Path], tmp_path: Path, command: Any
) -> None:
    arguments = ["evaluate", generators["zaq"], "--teacher", DIGITS, "--device", "cpu", "-q"]
    refused = command(*arguments)
    assert refused.exit_code == 2
    assert "zaq makes images without labels" in refused.stderr
    ignored = command(*arguments, "--pictures", tmp_path / "p", "--pairs", "3")
    assert ignored.exit_code == 2
    assert "Leave --pairs out" in ignored.stderr
    shown = command(*arguments, "--pictures", tmp_path / "p")
    assert shown.exit_code == 0, shown.output
    assert "not shown: Superposed images" in shown.stdout
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["feature_map.png", "images.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", DIGITS, "--pair", "1,2"], "--pair: is for a generator's pictures"),
        (["--teacher", DIGITS, "--per-class", "9"], "--per-class: is for a generator's pictures"),
        (["--teacher", DIGITS, "--limit", "5"], "--limit: is for images that are compared with"),
        (["--teacher", DIGITS, "--real", "x"], "there is no such file or folder of images"),
        (["--teacher", DIGITS, "--pair", "1", "--pictures", "p"], "two class numbers"),
        (["--teacher", DIGITS, "--noise", "some"], "'noise' must be one of auto, zero, drawn"),
        (["--teacher", DIGITS, "--clip", "x"], "--clip: judges images, not a generator"),
        (["--teacher", "embedded:digits-mobilenet"], "was trained for another teacher"),
        (["--pairs", "3"], "--pairs: judges a generator, so it needs --teacher"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    generators: dict[str, Path], command: Any, options: list[str], said: str
) -> None:
    result = command("evaluate", generators["qimera"], *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_the_map_has_as_many_images_of_a_class_as_asked_for(
    generators: dict[str, Path], tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emptyset.evaluate import generator_pictures

    drawn, whole = [], generator_pictures.generator_pictures

    def watched(*given: Any, **named: Any) -> Any:
        drawn.append(whole(*given, **named))
        return drawn[-1]

    monkeypatch.setattr(generator_pictures, "generator_pictures", watched)
    result = command(
        "evaluate", generators["qimera"], "--teacher", DIGITS, "--device", "cpu", "-q",
        "--pairs", "1", "--per-class", "11", "--pictures", tmp_path / "p",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (pictures,) = drawn
    assert len(pictures.feature_map.generated.places) == 10 * 11
    assert len(pictures.feature_map.superposed.places) == 9 * 11


def test_without_a_teacher_it_says_what_is_missing(
    generators: dict[str, Path], command: Any
) -> None:
    result = command("evaluate", generators["qimera"])
    assert result.exit_code == 5
    assert "is a generator, not a run" in result.stderr
    assert "--teacher TEACHER" in result.stderr


def test_options_of_a_generator_are_refused_for_images(real: Path, command: Any) -> None:
    result = command("evaluate", real, "--teacher", DIGITS, "--pictures", "p")
    assert result.exit_code == 2
    assert "--pictures: judges a generator, not images" in result.stderr


def test_a_generators_images_are_compared_with_real_ones_as_stored_images_are(
    generators: dict[str, Path], real: Path, tmp_path: Path, command: Any
) -> None:
    count, seed, made = "13", "5", tmp_path / "made"
    drawn = command(
        "synthesize", DIGITS, "--from", generators["qimera"], "--count", count, "--seed", seed,
        "--device", "cpu", "--out", made,
    )  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    common = ["--teacher", DIGITS, "--real", real, "--device", "cpu", "-q", "--limit", count]
    expected = told(command("evaluate", made, *common, "--json"))["neighbours"]
    asked = [generators["qimera"], *common, "--seed", seed, "--pairs", "1"]
    page = tmp_path / "page.html"
    found = told(command("evaluate", *asked, "--json", "--report", page))
    assert found["neighbours"] == expected
    assert (found["neighbours"]["count"], found["neighbours"]["real_count"]) == (13, 13)
    assert found["class_boundary"]["pairs"] == 1
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"13 images drawn with seed 5, beside 13 real ones of {real}" in text
    nearest = expected["features"]["closest"][0]
    assert f"image {nearest['image']}, real {nearest['real']}: " in text
    assert "Nearest pairs, by features" in text
    shown = " ".join(command("evaluate", *asked).stdout.split())
    assert "superposed embeddings" in shown
    assert "distance to the nearest real image" in shown
    assert "features, closer" in shown
    assert "13 images drawn with seed 5" in shown


def test_so_many_images_are_drawn_where_nothing_is_said(
    generators: dict[str, Path], real: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emptyset.cli import evaluate_generator

    assert evaluate_generator.DRAWN == 1024
    monkeypatch.setattr(evaluate_generator, "DRAWN", 21)
    common = ["--teacher", DIGITS, "--device", "cpu", "-q", "--json"]
    found = told(command("evaluate", generators["zaq"], *common, "--real", real))
    assert (found["neighbours"]["count"], found["neighbours"]["real_count"]) == (21, 40)
    assert found["class_boundary"] is None
    assert "zaq makes images without labels" in found["not_shown"][0]
    without = told(command("evaluate", generators["qimera"], *common, "--pairs", "1"))
    assert without["neighbours"] is None
    assert without["not_shown"] is None


def test_a_page_without_real_images_tells_no_distances(
    generators: dict[str, Path], tmp_path: Path, command: Any
) -> None:
    page = tmp_path / "page.html"
    common = ["--teacher", DIGITS, "--device", "cpu", "-q", "--report", page]
    result = command("evaluate", generators["zaq"], *common)
    assert result.exit_code == 0, result.output
    assert "Nearest" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["generator.safetensors", "other.safetensors"])
def test_a_damaged_generator_is_named_as_one(
    name: str, generators: dict[str, Path], tmp_path: Path, command: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(generators["zaq"].read_bytes()[:300])
    result = command("evaluate", path, "--teacher", DIGITS, "--device", "cpu", "-q")
    assert result.exit_code == 2
    assert "not a readable generator" in result.stderr


def test_made_images_are_compared_with_the_nearest_real_ones(
    real: Path, tmp_path: Path, teacher: Any, command: Any
) -> None:
    given = emptyset.images_from(real, teacher).image_set()
    # One of them is a real image.
    made = torch.cat([0.5 * given.images[:4], given.images[9:10]])
    ImageSet(made).save(tmp_path / "made")
    page = tmp_path / "page.html"
    arguments = [
        "evaluate", tmp_path / "made", "--teacher", DIGITS, "--real", real, "--device", "cpu", "-q",
    ]  # fmt: skip
    found = told(command(*arguments, "--json", "--report", page))["neighbours"]
    expected = nearest_neighbours(ImageSet(made), given, teacher)
    assert found["pixels"] == json.loads(json.dumps(expected.pixels.to_json()))
    assert found["pixels"]["closest"][0] == {"image": 4, "real": 9, "distance": 0.0}
    assert (found["count"], found["real_count"]) == (5, 40)
    assert "image 4, real 9: 0" in page.read_text(encoding="utf-8")
    shown = command(*arguments).stdout
    assert "distance to the nearest real image" in shown
    assert "features, closer" in shown
    alone = ["evaluate", tmp_path / "made", "--teacher", DIGITS, "--device", "cpu", "-q", "--json"]
    assert told(command(*alone))["neighbours"] is None


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_given: Any, **_named: Any) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("emptyset.evaluate.class_boundary.class_boundary", work)
    monkeypatch.setattr("emptyset.evaluate.nearest_neighbours.nearest_neighbours", work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pair", "3,12", "--pictures", "p"], "expected two different classes of"),
        (["--pair", "3,3", "--pictures", "p"], "expected two different classes of"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_the_work(
    options: list[str],
    said: str,
    generators: dict[str, Path],
    real: Path,
    command: Any,
) -> None:
    common = ["--teacher", DIGITS, "--device", "cpu", "-q"]
    result = command("evaluate", generators["qimera"], *common, "--real", real, *options)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


@pytest.mark.usefixtures("no_work")
def test_places_that_cannot_be_written_to_are_refused_before_the_work(
    generators: dict[str, Path], real: Path, tmp_path: Path, command: Any
) -> None:
    (tmp_path / "file").touch()
    for asked, said in (
        (["--pictures", tmp_path / "file"], "is a file. Name a folder"),
        (["--report", tmp_path], "is a folder. Name the page"),
    ):
        result = command("evaluate", generators["qimera"], "--teacher", DIGITS, *asked)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.stderr.split())


@pytest.mark.usefixtures("no_work")
def test_a_single_real_image_is_refused_before_the_work(
    generators: dict[str, Path], tmp_path: Path, command: Any
) -> None:
    one, data = tmp_path / "one.npz", arrays_of(held_out_images_path())
    np.savez(one, images=data["images"][:1], labels=data["labels"][:1])
    common = ["--teacher", DIGITS, "--device", "cpu", "-q"]
    result = command("evaluate", generators["qimera"], *common, "--real", one)
    assert result.exit_code == 2, result.output
    assert "Got 1024 and 1" in result.stderr

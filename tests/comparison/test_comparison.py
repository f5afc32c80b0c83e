"""A whole comparison: its numbers by another route, and what is done once."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_comparison import OPTIONS
from stored_arrays import arrays_of

import emptyset
from emptyset import measurement, pipeline
from emptyset.comparison.judging import Judge
from emptyset.errors import ImagesError, RunFolderError
from emptyset.evaluate.image_quality import image_quality
from emptyset.images.folder import load_images
from emptyset.images.image_set import ImageSet
from emptyset.job.image_stages import KnownImages
from emptyset.monitor import SILENT
from emptyset.recipe import Recipe
from emptyset.run_folder import LOG
from emptyset.teachers.embedded import held_out_images_path

DIGITS = "embedded:digits-resnet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> Path:
    """Read only: two methods and their tables."""
    out = tmp_path_factory.mktemp("comparisons") / "c"
    emptyset.compare(DIGITS, ["zeroq", "dffg"], out=out, **options)
    return out


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "c"))


@pytest.fixture
def real_images(tmp_path: Path) -> Path:
    """A hundred of the shipped scans, without labels."""
    data = arrays_of(held_out_images_path())
    np.savez(tmp_path / "real.npz", images=data["images"][:100])
    return tmp_path / "real.npz"


def table_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    return found


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:

        def refuse(*_: Any, name: str = name, **__: Any) -> None:
            raise AssertionError(f"{name} was called again")

        home = pipeline if hasattr(pipeline, name) else measurement
        monkeypatch.setattr(home, name, refuse)


# Numbers ---------------------------------------------------------------------------------------


def test_the_numbers_of_a_row_are_those_of_the_single_functions(
    finished: Path, few_labelled: Path
) -> None:
    row = table_of(finished)["rows"][1]
    assert row["name"] == "dffg"
    # 2 harvests of 6 images; 100 image-iterations are 16 steps of 6.
    assert row["settings"] == {"snapshots": 2, "steps": 16}
    assert row["images"]["image_iterations"] == 96
    assert row["images"]["steps"] == 16
    teacher = emptyset.load(DIGITS)
    images = emptyset.synthesize(teacher, "dffg", count=12, seed=5, snapshots=2, steps=16)
    stored = ImageSet.load(finished / "rows" / "dffg" / "images")
    assert stored.digest() == images.digest()
    quality = image_quality(images, teacher, batch_size=12).to_json()
    assert row["quality"] == json.loads(json.dumps(quality))
    student = emptyset.prepare(teacher, "w4a4")
    emptyset.refine(student, images, "calibrate", seed=5)
    measured = emptyset.measure(
        student, teacher, load_images(few_labelled, teacher.input), seed=5
    ).to_json()
    for name in ("agreement", "quantized", "teacher"):
        assert row["student"][name] == measured[name], name
    assert table_of(finished)["teacher"]["accuracy"] == measured["teacher"]
    seconds = row["images"]["seconds"]
    assert seconds > 0
    assert row["images"]["per_second"] == pytest.approx(12 / seconds)


def test_no_row_spends_more_than_the_budget(finished: Path) -> None:
    spent = [row["images"]["image_iterations"] for row in table_of(finished)["rows"]]
    assert spent == [96, 96]
    assert table_of(finished)["complete"] is True


def test_the_folder_holds_tables_page_and_a_run_folder_per_row(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "compare.yaml", "compare.json", "compare.md", "compare.html", "rows",
    }  # fmt: skip
    lines = (finished / "compare.md").read_text(encoding="utf-8").splitlines()
    assert (
        sum(line.startswith(("| zeroq |", "| dffg |", "| float network |")) for line in lines) == 3
    )
    page = (finished / "compare.html").read_text(encoding="utf-8")
    assert "http" not in page
    # 6 tiles of zeroq's 12 (none is labelled), and of dffg every one up to 4 in a row.
    assert page.count("data:image/png;base64,") >= 12
    for row in ("zeroq", "dffg"):
        assert not (finished / "rows" / row / ".partial").exists()


def test_a_row_goes_on_to_a_file(
    own: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    folder = own / "rows" / "zeroq"
    recipe = Recipe.load(folder / "recipe.yaml", ["evaluate.layer_images=1"])
    monkeypatch.setattr(pipeline, "export", reached)
    with pytest.raises(KeyboardInterrupt):
        emptyset.run(recipe, folder, overwrite=True)
    log = (folder / LOG).read_text(encoding="utf-8")
    assert "export: stopped" in log
    assert log.count(" images: started") == log.count(" student: started") == 1
    # And the comparison still holds.
    forbid(monkeypatch, "synthesize_to", "prepare", "refine", "predictor")
    again = emptyset.compare(DIGITS, ["zeroq", "dffg"], out=own, **options)
    assert again.table["rows"] == table_of(own)["rows"]


# Once ------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(
    own: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    before = table_of(own)
    forbid(monkeypatch, "synthesize_to", "prepare", "refine", "predictor")
    emptyset.compare(DIGITS, ["zeroq", "dffg"], out=own, **options)
    again = table_of(own)
    assert again.pop("command") == f"emptyset compare {own}/compare.yaml --out {own}"
    before.pop("command")
    assert again == before


def test_a_killed_comparison_goes_on_and_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    refine, calls = pipeline.refine, []

    def killed(*values: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        refine(*values, **named)

    out = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "refine", killed)
        with pytest.raises(KeyboardInterrupt):
            emptyset.compare(DIGITS, ["zeroq", "dffg"], out=out, **options)
    told = table_of(out)
    assert [row["name"] for row in told["rows"]] == ["zeroq"]
    assert told["complete"] is False
    forbid(monkeypatch, "synthesize_to")
    emptyset.compare(DIGITS, ["zeroq", "dffg"], out=out, **options)
    log = (out / "rows" / "dffg" / LOG).read_text(encoding="utf-8")
    assert log.count(" images: started") == 1
    assert log.count("student: stopped by KeyboardInterrupt") == 1

    def without_times(table: dict[str, Any]) -> Any:
        for row in table["rows"]:
            row["student"].pop("seconds")
            for name in ("seconds", "per_second"):
                row["images"].pop(name)
        return table["rows"]

    assert without_times(table_of(out)) == without_times(table_of(finished))


def test_one_more_method_keeps_the_rows_that_are_there(
    own: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    with pytest.raises(RunFolderError, match="rows that stay equal are kept"):
        emptyset.compare(DIGITS, ["zeroq", "dffg", "noise"], out=own, **options)
    made, synthesize_to = [], pipeline.synthesize_to

    def watched(folder: Path, teacher: Any, method: str, *values: Any, **named: Any) -> Any:
        made.append(method)
        return synthesize_to(folder, teacher, method, *values, **named)

    monkeypatch.setattr(pipeline, "synthesize_to", watched)
    options = options | {"overwrite": True}
    result = emptyset.compare(DIGITS, ["zeroq", "dffg", "noise"], out=own, **options)
    assert made == ["noise"]
    noise = result.table["rows"][2]
    assert noise["images"]["image_iterations"] == 0
    assert "takes no steps" in noise["remark"]
    assert "noise: takes no steps" in (own / "compare.md").read_text(encoding="utf-8")


# Judges ----------------------------------------------------------------------------------------


def test_real_images_are_a_row_fitted_alike_and_judged_on_the_rest(
    tmp_path: Path, real_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emptyset.comparison.judges.labelled_path", lambda _: None)
    options = OPTIONS | {"settings": (), "real": real_images}
    result = emptyset.compare(DIGITS, ["noise"], out=tmp_path / "c", **options)
    judged, rows = result.table["judged"], result.table["rows"]
    assert judged["count"] == 20
    assert judged["labelled"] is False
    assert [row["name"] for row in rows] == ["noise", "real"]
    real = rows[1]
    assert real["images"] == {
        "count": 12, "seconds": None, "per_second": None, "steps": None, "image_iterations": None,
    }  # fmt: skip
    assert real["student"]["teacher"] is None
    assert real["student"]["count"] == 20
    assert real["quality"]["distance"]["sum_l2"] < rows[0]["quality"]["distance"]["sum_l2"]
    page = (tmp_path / "c" / "compare.md").read_text(encoding="utf-8")
    assert "top-1 %" not in page
    assert "accuracy is not known" in page


def test_without_any_real_image_all_methods_make_the_judges_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emptyset.comparison.judges.labelled_path", lambda _: None)
    monkeypatch.setattr("emptyset.job.image_stages.labelled_path", lambda _: None)
    options = OPTIONS | {"settings": ["methods.dffg.snapshots=2", "judged_count=7"]}
    seen: list[torch.Tensor] = []
    measure = Judge.measure

    def watched(self: Judge, *values: Any) -> Any:
        assert isinstance(self.judged.images, ImageSet)
        seen.append(self.judged.images.images)
        return measure(self, *values)

    monkeypatch.setattr(Judge, "measure", watched)
    emptyset.compare(DIGITS, ["noise", "dffg"], out=tmp_path / "c", **options)
    made = [
        ImageSet.load(tmp_path / "c" / "rows" / n / "images" / "judged") for n in ("noise", "dffg")
    ]
    # 7 between 2 methods: 4 each.
    assert [len(part) for part in made] == [4, 4]
    assert len(seen) == 2
    for images in seen:
        assert torch.equal(images, torch.cat([part.images for part in made]))
    fitted = ImageSet.load(tmp_path / "c" / "rows" / "dffg" / "images").images
    assert not any(torch.equal(one, other) for one in fitted for other in made[1].images)


def test_labelled_images_without_labels_and_too_few_real_ones_are_refused(
    tmp_path: Path, real_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImagesError, match=r"holds no labels.*--real"):
        emptyset.compare(
            DIGITS, ["noise"], out=tmp_path / "c", **OPTIONS | {"settings": ()},
            labelled=real_images,
        )  # fmt: skip
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr("emptyset.comparison.judges.labelled_path", lambda _: None)
    np.savez(tmp_path / "few.npz", images=arrays_of(real_images)["images"][:9])
    with pytest.raises(ImagesError, match="Give at least 10"):
        emptyset.compare(
            DIGITS, ["noise"], out=tmp_path / "c", **OPTIONS | {"settings": ()},
            real=tmp_path / "few.npz",
        )  # fmt: skip


def test_the_judge_reads_each_answer_once_and_gives_what_measure_gives() -> None:
    teacher = emptyset.load(DIGITS)
    images = load_images(held_out_images_path(), teacher.input, limit=30)
    student = emptyset.prepare(teacher, "w3a3")
    emptyset.refine(student, emptyset.synthesize(teacher, "noise", 8), "calibrate")
    found = Judge(teacher, KnownImages(images, "id", "scans", real=True), 3).measure(
        student, SILENT
    )
    expected = emptyset.measure(student, teacher, images, seed=3).to_json()
    assert found == expected | {"count": 30}
    unlabelled = ImageSet(images.image_set().images)
    told = Judge(teacher, KnownImages(unlabelled, "id", "scans"), 3, 1e-3).measure(student, SILENT)
    assert told["agreement"] == expected["agreement"]
    assert told["teacher"] is None


# Time ------------------------------------------------------------------------------------------


def test_steps_that_were_timed_once_are_not_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    from dataclasses import replace

    from emptyset.comparison import rows

    timed: list[float] = []

    def seven_steps(entry: Any, config: Any, *values: Any, **_: Any) -> Any:
        timed.append(values[-1])
        return replace(config, steps=7, plateau_patience=6)

    monkeypatch.setattr(rows, "within_seconds", seven_steps)
    options = options | {"image_iterations": None, "seconds": 500.0, "settings": ()}
    first = emptyset.compare(DIGITS, ["zeroq"], out=tmp_path / "c", **options)
    second = emptyset.compare(DIGITS, ["zeroq"], out=tmp_path / "c", **options)
    assert timed == [500.0]
    (row,) = second.table["rows"]
    assert row["settings"] == {"steps": 7, "plateau_patience": 6}
    assert row["images"]["image_iterations"] == 7 * 12
    assert row["remark"].endswith("s of 500 s")
    assert first.table["rows"] == second.table["rows"]


def test_own_settings_are_left_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    options = options | {"image_iterations": None, "own_settings": True}
    options["settings"] = ["methods.zeroq.steps=3", "methods.zeroq.batch_size=5"]
    result = emptyset.compare(DIGITS, ["zeroq"], out=tmp_path / "c", **options)
    (row,) = result.table["rows"]
    # 12 images are 3 batches of 4.
    assert row["images"]["image_iterations"] == 3 * 4 * 3
    assert row["settings"] == {"steps": 3, "batch_size": 5}
    assert "own settings" in result.table["budget"]

"""What goes wrong in a comparison: one row of it, or all."""

from pathlib import Path
from typing import Any

import pytest

import emptyset
from emptyset import pipeline
from emptyset.comparison import comparison_for, run_comparison
from emptyset.errors import RecipeError, RunFolderError, UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SILENT

DIGITS = "embedded:digits-resnet"


def test_a_method_that_cannot_meet_the_budget_says_so_in_its_row(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    # 20 image-iterations are one step of 12 images, and 10 of 2 after a burn-in: too few for dffg.
    options = options | {"image_iterations": 20, "settings": ()}
    result = emptyset.compare(DIGITS, ["dffg", "noise"], out=tmp_path / "c", **options)
    fault, row = result.table["rows"]
    assert "allows 10 steps" in fault["fault"]
    assert fault["images"] is None
    assert row["fault"] is None
    text = (tmp_path / "c" / "compare.md").read_text(encoding="utf-8")
    assert "dffg: the budget allows 10 steps" in text
    assert "| dffg | – |" in text
    with pytest.raises(RecipeError, match="allows 10 steps"):
        emptyset.compare(DIGITS, ["dffg"], out=tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()


def test_a_method_that_the_teacher_does_not_suit_is_one_row_without_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    synthesize_to = pipeline.synthesize_to

    def picky(folder: Path, teacher: Any, method: str, *values: Any, **named: Any) -> Any:
        if method == "zeroq":
            raise UnsupportedModelError("zeroq: not with this network.")
        return synthesize_to(folder, teacher, method, *values, **named)

    monkeypatch.setattr(pipeline, "synthesize_to", picky)
    notes: list[str] = []

    class Hearing(type(SILENT)):  # type: ignore[misc]
        def note(self, message: str) -> None:
            notes.append(message)

    options = options | {"settings": (), "monitor": Hearing()}
    result = emptyset.compare(DIGITS, ["zeroq", "noise"], out=tmp_path / "c", **options)
    assert result.table["rows"][0]["fault"] == "zeroq: not with this network."
    assert [note for note in notes if "calibrate" not in note] == [
        "Warning: zeroq: zeroq: not with this network."
    ]


def test_a_full_disk_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    asked: list[int] = []

    def full(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ImageSet, "save", full)
    with pytest.raises(RunFolderError, match="disk is full"):
        emptyset.compare(
            DIGITS, ["noise", "again=noise"], out=tmp_path / "c", **options | {"settings": ()}
        )
    assert asked == [1]


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    comparison = comparison_for({"name": DIGITS}, ["noise"])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"thesis\.txt"):
        run_comparison(comparison, tmp_path / "c")
    with pytest.raises(RunFolderError, match="is a file"):
        run_comparison(comparison, tmp_path / "c" / "thesis.txt")
    (tmp_path / "c" / "compare.yaml").write_text("[", encoding="utf-8")
    with pytest.raises(RunFolderError, match="cannot be read"):
        run_comparison(comparison, tmp_path / "c")

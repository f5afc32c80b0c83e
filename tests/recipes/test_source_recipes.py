"""Recipes with a source: every source has one, its student learns as it should, and long enough."""

from pathlib import Path
from typing import Any

import pytest

from emptyset.quantizers.bits import Bits
from emptyset.recipe import Recipe
from emptyset.refiners.course import Course
from emptyset.refiners.distill import DistillConfig
from emptyset.registry import sources
from emptyset.settings import checked_config

FOLDER = Path(__file__).parents[2] / "recipes"
PATHS = [p for p in sorted(FOLDER.glob("*.yaml")) if Recipe.load(p).source is not None]
# What goes with which source, as the module docstrings of both say.
PRESETS = {
    "gdfq": {"gdfq", "ait"},
    "qimera": {"gdfq", "ait"},
    "autorecon": {"gdfq", "ait"},
    "zaq": {"zaq"},
    "qimera on zaq": {"zaq"},
    "adasg": {"adasg"},
    "adadfq": {"adadfq"},
    "texq": {"texq"},
}
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def source_of(path: Path) -> tuple[str, dict[str, Any]]:
    """Its name, with the base where that is ZAQ, and its settings."""
    section = Recipe.load(path).source
    assert section is not None
    settings = section.settings()
    on = " on zaq" if settings.get("base") == "zaq" else ""
    return section.method + on, settings


def distill_of(path: Path) -> DistillConfig:
    (section,) = Recipe.load(path).refine
    assert section.method == "distill"
    made: DistillConfig = checked_config(DistillConfig, section.settings())
    return made


def course_of(path: Path) -> Course:
    return distill_of(path).course(Bits.parse(Recipe.load(path).plan.bits))


def test_every_source_and_qimera_on_zaq_have_a_recipe() -> None:
    assert {source_of(path)[0] for path in PATHS} >= {*sources.names(), "qimera on zaq"}
    assert set(PRESETS) == {*sources.names(), "qimera on zaq"}


@each
def test_student_and_source_belong_together(path: Path) -> None:
    name, settings = source_of(path)
    preset, plan = distill_of(path).preset, Recipe.load(path).plan
    assert preset in PRESETS[name]
    assert (plan.name, plan.batch_norm) == ("every_layer", "frozen")
    assert distill_of(path).cross_entropy == (0.1 if name == "qimera on zaq" else None)
    words = path.stem.split("_")
    for word in (settings.get("base"), "ait" if preset == "ait" else None):
        assert word is None or word in words


@each
def test_the_student_learns_at_the_full_rate_as_long_as_published(path: Path) -> None:
    course = course_of(path)
    shares = [course.share_of_rate(number) for number in range(course.warm_up, course.steps)]
    # Of 400 epochs 4 are warm-up, and the first milestone is the 100th; of ZAQ's 300 none.
    published = 1 / 3 if distill_of(path).preset == "zaq" else 96 / 396
    assert shares.count(1.0) / len(shares) == pytest.approx(published, abs=0.01)
    assert shares[-1] == pytest.approx(0.01 if distill_of(path).preset == "zaq" else 0.001)


@each
def test_the_sources_rate_falls_with_the_students(path: Path) -> None:
    _, settings = source_of(path)
    assert tuple(settings.get("milestones", ())) == (distill_of(path).milestones or ())
    moved = "of the rest instead of the whole" in " ".join(comment(path).split())
    assert moved is (course_of(path).warm_up > 0)


def comment(path: Path) -> str:
    """What the file says before its first key."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


@each
def test_what_differs_from_the_paper_is_named(path: Path) -> None:
    text = " ".join(comment(path).split())
    course, config = course_of(path), distill_of(path)
    assert f"{course.steps} batches of {config.batch_size} instead of" in text
    if course.warm_up:
        assert f"so {course.warm_up} of them" in text

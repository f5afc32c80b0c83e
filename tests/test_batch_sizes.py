"""Images that a refiner takes at once, where the settings leave that to a preset."""

from types import SimpleNamespace
from typing import Any

import pytest
from small_teachers import two_convolutions

from emptyset.graph.memory import BYTES_PER_GIGABYTE, bytes_per_image
from emptyset.graph.student import Student, prepare
from emptyset.job.stages import Stages
from emptyset.recipe import MethodSection
from emptyset.recipe_by_bits import work_of

# Images of a batch on CIFAR, as published; `learned` is ours.
SIZES = {
    "learned": 128, "published": 256, "gdfq": 200, "ait": 200, "zaq": 256, "adasg": 16,
    "adadfq": 16, "texq": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def student() -> Student:
    return prepare(two_convolutions(), "w4a4")


def fitted(student: Student, images: float, **settings: Any) -> Any:
    """The batch size in a recipe whose memory holds so many images."""
    memory = images * bytes_per_image(student) / BYTES_PER_GIGABYTE
    context: Any = SimpleNamespace(recipe=SimpleNamespace(memory=memory))
    found = Stages(context, context, None)._fitting(student, MethodSection(**settings))
    return found["batch_size"]


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_brings_its_own_and_memory_cuts_it(preset: str, student: Student) -> None:
    section = {"method": "distill", "preset": preset}
    assert fitted(student, 1000.5, **section) == SIZES[preset]
    assert fitted(student, 1000.5, **section, batch_size=None) == SIZES[preset]
    assert fitted(student, 1000.5, **section, batch_size=33) == 33
    assert fitted(student, 10.5, **section) == 10


def test_other_refiners_have_one_of_their_own(student: Student) -> None:
    assert fitted(student, 1000.5, method="calibrate") == 64
    assert fitted(student, 10.5, method="calibrate", batch_size=33) == 10


@pytest.mark.parametrize("preset", SIZES)
def test_the_work_of_a_recipe_counts_every_image(preset: str) -> None:
    section = {"method": "distill", "preset": preset, "steps": 7}
    # A forward and its gradients, and the teacher's forward.
    assert work_of({"refine": [section]}, 3.0, made=False) == 3.0 * 7 * SIZES[preset] * 4
    given = section | {"batch_size": 33}
    assert work_of({"refine": [given]}, 3.0, made=False) == 3.0 * 7 * 33 * 4

"""Images that were made for another teacher are used with a warning that names both."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_teachers import two_convolutions

import emptyset
from emptyset.errors import ImagesError, RecipeError
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import StoredImages
from emptyset.images.images_beside import WithImagesBeside
from emptyset.monitor import Monitor
from emptyset.teachers.teacher import Teacher

OTHER = "0123456789abcdef" * 4


class Heard(Monitor):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def teacher() -> Teacher:
    small = two_convolutions()
    return replace(small, name="file:/home/me/net.pth", weights_hash="ab" * 32)


def labelled() -> ImageSet:
    return ImageSet(torch.zeros(6, 3, 8, 12), torch.arange(6) % 5)


def images(**entry: Any) -> ImageSet:
    made = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return ImageSet(made, history=({"stage": "synthesize", "method": "zeroq", **entry},))


def warnings(teacher: Teacher, shown: Any, *methods: str) -> list[str]:
    student, heard = emptyset.prepare(teacher, "w8a8"), Heard()
    for method in methods:
        emptyset.refine(student, shown, method, monitor=heard)
    return [note for note in heard.notes if note.endswith("Make images for this teacher.")]


def test_every_refiner_warns_and_one_run_warns_once(teacher: Teacher) -> None:
    shown = images(teacher=OTHER, teacher_name="embedded:digits-resnet")
    (warning,) = warnings(teacher, shown, "calibrate", "bias_correction")
    assert "zeroq" in warning
    assert "for embedded:digits-resnet with weights 0123456789ab" in warning
    assert "teacher is file with weights abababababab" in warning
    assert "/home" not in warning


def test_older_images_name_the_weights_alone(teacher: Teacher) -> None:
    (warning,) = warnings(teacher, images(teacher=OTHER), "calibrate")
    assert "for a teacher with weights 0123456789ab" in warning


def test_a_source_of_stored_images_warns_too(teacher: Teacher) -> None:
    from emptyset.teachers.made_for import made_for_another

    assert made_for_another(StoredImages(images(teacher=OTHER), seed=0), teacher) is not None


@pytest.mark.parametrize(
    "shown",
    [images(teacher="ab" * 32), images(), ImageSet(torch.zeros(4, 3, 8, 8))],
    ids=["its own", "nothing told", "no history"],
)
def test_nothing_is_said_of_others(teacher: Teacher, shown: ImageSet) -> None:
    assert warnings(teacher, shown, "calibrate") == []


def test_a_made_set_says_for_which_teacher(teacher: Teacher) -> None:
    made = emptyset.synthesize(teacher, "noise", 4)
    assert made.history[0]["teacher"] == teacher.weights_hash
    assert made.history[0]["teacher_name"] == "file"


def test_a_source_of_another_teacher_is_refused(teacher: Teacher) -> None:
    source = emptyset.source(teacher, "gdfq", latent=6, widths=(5, 4))
    beside = WithImagesBeside(source, labelled(), classes=5, share=0.3, seed=0)
    other = replace(teacher, weights_hash="cd" * 32)
    for shown in (source, beside):
        with pytest.raises(RecipeError, match=r"gdfq.* for file with weights abab.*weights differ"):
            emptyset.refine(emptyset.prepare(other, "w4a4"), shown, "distill", steps=4)
    emptyset.refine(emptyset.prepare(teacher, "w4a4"), source, "distill", steps=4, batch_size=4)


def test_a_source_where_a_set_is_wanted_is_refused_with_what_to_do(teacher: Teacher) -> None:
    source = emptyset.source(teacher, "gdfq", latent=6, widths=(5, 4))
    with pytest.raises(ImagesError, match=r"calibrate: .* Got GeneratorSource. Draw a set"):
        emptyset.refine(emptyset.prepare(teacher, "w4a4"), source, "calibrate")

"""Stored images beside a source: in the student's batches, and nowhere else."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_beside_source import STEPS, make, taught
from small_teachers import two_convolutions

import emptyset
from emptyset.errors import EmptysetError, ImagesError, RecipeError
from emptyset.generation import with_real_images
from emptyset.images.image_set import ImageSet
from emptyset.images.images_beside import WithImagesBeside
from emptyset.monitor import SilentMonitor
from emptyset.pipeline import images_from
from emptyset.recipe import Recipe
from emptyset.teachers.teacher import Teacher

CLASSES = 5
pytestmark = pytest.mark.usefixtures("judged_on_few")

DIGITS = "embedded:digits-resnet"


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


def real(teacher: Teacher, count: int = 7) -> ImageSet:
    """Image n is full of the value 10 + n, which no generator gives."""
    values = 10.0 + torch.arange(count, dtype=torch.float32)
    pixels = values.view(-1, 1, 1, 1).expand(-1, *teacher.input.shape).contiguous()
    return ImageSet(pixels, torch.arange(count) % CLASSES)


def beside(source: Any, images: ImageSet, share: float = 0.3) -> WithImagesBeside:
    return WithImagesBeside(source, images, classes=CLASSES, share=share, seed=5)


def test_the_first_images_are_stored_ones_and_the_source_learns_as_alone(teacher: Teacher) -> None:
    both, alone = beside(make("gdfq", teacher), real(teacher)), make("gdfq", teacher)
    for source in (both, alone):
        source.begin(4, 10, monitor=SilentMonitor())
    seen = []
    for _ in range(4):
        lesson, expected = both.next_batch(10), alone.next_batch(10)
        assert lesson.images.shape == expected.images.shape
        torch.testing.assert_close(lesson.images[3:], expected.images[3:], rtol=0, atol=0)
        assert lesson.targets is not None
        assert torch.equal(lesson.targets[3:], expected.targets[3:])
        values = lesson.images[:3, 0, 0, 0].tolist()
        assert [int(v - 10) % CLASSES for v in values] == lesson.targets[:3].tolist()
        # What the source asked the teacher is not about these images.
        assert lesson.teacher_logits is None
        seen += values
    # Two epochs of seven begin again after all were seen.
    assert sorted(seen[:7]) == [10.0 + n for n in range(7)]
    kept, wanted = both.source.state(), alone.state()
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_hard_labels_stand_beside_soft_ones(dtype: torch.dtype, teacher: Teacher) -> None:
    source = make("qimera", teacher, superposed_share=1.0, superposed_classes=3)
    images = real(teacher)
    assert images.targets is not None
    images = ImageSet(images.images, images.targets.to(dtype))
    lesson = beside(source, images).next_batch(10)
    assert lesson.targets is not None
    assert lesson.targets.shape == (10, CLASSES)
    labels = [int(v - 10) % CLASSES for v in lesson.images[:3, 0, 0, 0].tolist()]
    expected = torch.nn.functional.one_hot(torch.tensor(labels), CLASSES).float()
    torch.testing.assert_close(lesson.targets[:3], expected)
    torch.testing.assert_close(lesson.targets.sum(1), torch.ones(10))


@pytest.mark.parametrize(("share", "size", "stored"), [(0.01, 9, 1), (0.99, 9, 8), (0.5, 4, 2)])
def test_there_is_always_one_of_each(
    teacher: Teacher, share: float, size: int, stored: int
) -> None:
    lesson = beside(make("gdfq", teacher), real(teacher), share).next_batch(size)
    assert int((lesson.images.flatten(1).amin(1) >= 10).sum()) == stored


def test_batches_that_the_source_alone_learns_from_are_left_alone(teacher: Teacher) -> None:
    source = beside(make("zaq", teacher, student_steps=2), real(teacher))
    source.begin(3, 6, monitor=SilentMonitor())
    counts = []
    for _ in range(3):
        lesson = source.next_batch(6)
        counts.append(int((lesson.images.flatten(1).amin(1) >= 10).sum()))
        assert lesson.targets is None
    assert counts == [2, 2, 0]
    assert lesson.source_learns


def test_a_killed_run_goes_on_with_the_same_batches(teacher: Teacher) -> None:
    whole = beside(make("gdfq", teacher), real(teacher))
    whole.begin(5, 6, monitor=SilentMonitor())
    batches = [whole.next_batch(6).images for _ in range(5)]
    first, second = (beside(make("gdfq", teacher), real(teacher)) for _ in range(2))
    first.begin(5, 6, monitor=SilentMonitor())
    for _ in range(2):
        first.next_batch(6)
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    second.load_state(torch.load(io.BytesIO(buffer.getvalue())))
    for expected in batches[2:]:
        torch.testing.assert_close(second.next_batch(6).images, expected, rtol=0, atol=0)


def test_the_student_learns_from_them(teacher: Teacher) -> None:
    def weights(source: Any) -> torch.Tensor:
        student = taught(teacher, source, preset="gdfq", batch_norm="frozen", warm_up=0.25)
        return torch.cat([p.detach().flatten() for p in student.program.parameters()])

    alone = weights(make("gdfq", teacher))
    assert torch.equal(alone, weights(make("gdfq", teacher)))
    assert STEPS > 4
    assert not torch.equal(alone, weights(beside(make("gdfq", teacher), real(teacher))))


def test_a_source_that_learns_with_the_student_is_refused(teacher: Teacher) -> None:
    source = beside(make("adasg", teacher), real(teacher))
    with pytest.raises(ImagesError, match="learns from the same batches as the student"):
        source.next_batch(6)
    with pytest.raises(RecipeError, match=r"'adasg' learns.* gdfq, qimera, autorecon, texq or zaq"):
        with_real_images(make("adasg", teacher), real(teacher), teacher)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_must_leave_both(teacher: Teacher, share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0 and below 1"):
        beside(make("gdfq", teacher), real(teacher), share)


def test_labels_are_needed(teacher: Teacher) -> None:
    without = ImageSet(real(teacher).images)
    with pytest.raises(ImagesError, match=r"need labels, and at least one image. Got 7 without"):
        beside(make("gdfq", teacher), without)


# Chosen by the teacher's confidence ---------------------------------------------------------------


class Notes(SilentMonitor):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def confidence(teacher: Teacher, images: ImageSet) -> list[float]:
    logits = teacher.module(images.images).double()
    return (logits.exp() / logits.exp().sum(1, keepdim=True)).amax(1).tolist()


@pytest.mark.parametrize("choose", ["confusing", "unconfusing", "all"])
def test_only_the_chosen_images_are_shown(teacher: Teacher, choose: str) -> None:
    images = real(teacher, 12)
    sure = confidence(teacher, images)
    # Of each class the less sure one of its two or three images.
    least = {min(range(c, 12, CLASSES), key=lambda n: sure[n]) for c in range(CLASSES)}
    notes = Notes()
    made = with_real_images(
        make("gdfq", teacher), images, teacher,
        choose=choose, per_class=None if choose == "all" else 1, share=0.5, monitor=notes,
    )  # fmt: skip
    shown: set[int] = set()
    for _ in range(4):
        values = made.next_batch(10).images[:5, 0, 0, 0]
        shown |= {int(v) - 10 for v in values.tolist()}
    if choose == "confusing":
        assert shown == least
    elif choose == "unconfusing":
        assert len(shown) == CLASSES
        assert not shown & least
    else:
        assert shown == set(range(12))
    assert made.about["real_images_beside"] == len(shown)
    (note,) = notes.notes
    assert note.startswith("all 12 real" if choose == "all" else f"5 {choose} of 12 real")
    assert note.endswith("for analysis, not data-free.")
    if choose != "all":
        found = {c["label"]: (c["images"], c["chosen"]) for c in made.about["classes"]}
        assert found == {c: (3 if c < 2 else 2, 1) for c in range(CLASSES)}
        assert made.about["short"] == []


def test_no_image_below_the_limit_is_an_error_that_says_what_to_do(teacher: Teacher) -> None:
    with pytest.raises(ImagesError, match=r"surer than 0.01 of all 7 images.*Raise below"):
        with_real_images(make("gdfq", teacher), real(teacher), teacher, below=0.01)


def test_by_itself_it_takes_what_the_paper_took(teacher: Teacher) -> None:
    images, notes = real(teacher, 12), Notes()
    sure = sorted(confidence(teacher, images))
    assert sure[0] > 0.25
    with pytest.raises(ImagesError, match=r"surer than 0.25 of all 12"):
        with_real_images(make("gdfq", teacher), images, teacher)
    below = (sure[2] + sure[3]) / 2
    made = with_real_images(make("gdfq", teacher), images, teacher, below=below, monitor=notes)
    assert notes.notes == ["3 confusing of 12 real images stand in the batches: for analysis, "
                           "not data-free."]  # fmt: skip
    assert made.about["real_images_beside"] == 3


def test_classes_that_lack_images_are_counted(teacher: Teacher) -> None:
    images, notes = real(teacher, 12), Notes()
    sure = confidence(teacher, images)
    below = (sorted(sure)[3] + sorted(sure)[4]) / 2
    made = with_real_images(
        make("gdfq", teacher), images, teacher, per_class=2, below=below, monitor=notes
    )
    chosen = [n for n, c in enumerate(sure) if c < below]
    short = [c for c in range(CLASSES) if sum(n % CLASSES == c for n in chosen) < 2]
    assert made.about["short"] == short
    assert len(short) >= 3
    assert notes.notes[-1].endswith(f"Of {len(short)} classes there are fewer than wanted.")


def test_few_images_may_all_be_confusing(teacher: Teacher) -> None:
    made = with_real_images(make("gdfq", teacher), real(teacher), teacher, per_class=9)
    assert made.about["real_images_beside"] == 7
    with pytest.raises(ImagesError, match="only 0 are left for the control"):
        with_real_images(
            make("gdfq", teacher), real(teacher), teacher, choose="unconfusing", per_class=9
        )


@pytest.mark.parametrize("choose", ["confusing", "all"])
def test_a_label_that_is_no_class_is_refused(teacher: Teacher, choose: str) -> None:
    images = real(teacher)
    wrong = ImageSet(images.images, images.targets + 2)
    with pytest.raises(ImagesError, match=r"labels run from 2 to 6, but the teacher has 5"):
        with_real_images(make("gdfq", teacher), wrong, teacher, choose=choose)


def test_limits_that_choose_nothing_are_refused(teacher: Teacher) -> None:
    with pytest.raises(RecipeError, match="Leave out 'per_class' and 'below'"):
        with_real_images(make("gdfq", teacher), real(teacher), teacher, choose="all", per_class=3)


def test_of_a_stream_only_the_chosen_images_are_kept(scans: Path) -> None:
    digits = emptyset.load(DIGITS)
    stream = images_from(scans, digits)
    whole = with_real_images(make("gdfq", digits), stream.image_set(), digits, per_class=1)
    lazy = with_real_images(make("gdfq", digits), stream, digits, per_class=1)
    assert lazy.about == whole.about
    for _ in range(3):
        one, other = (source.next_batch(20) for source in (lazy, whole))
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)


def test_an_unknown_choice_is_named(teacher: Teacher) -> None:
    with pytest.raises(RecipeError, match=r"confusing, unconfusing, all. Got 'some'"):
        with_real_images(make("gdfq", teacher), real(teacher), teacher, choose="some")


# In a recipe --------------------------------------------------------------------------------------


def recipe(path: Path, **beside: Any) -> Recipe:
    return Recipe.parse(
        {
            "teacher": {"name": DIGITS}, "device": "cpu",
            "plan": {"name": "every_layer", "bits": "w4a4", "batch_norm": "frozen"},
            "source": {
                "method": "gdfq", "count": 4, "widths": [5, 4],
                "beside": {"images": str(path), "per_class": 1, **beside},
            },
            "refine": [
                {"method": "distill", "preset": "gdfq", "steps": 4, "batch_size": 4,
                 "learning_rate": 0.1}
            ],
            "evaluate": {"layer_images": 2, "latency_rounds": 0, "quality_images": 0},
        }
    )  # fmt: skip


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    random, path = np.random.default_rng(0), tmp_path / "scans.npz"
    pixels = random.integers(0, 256, (30, 16, 16, 1), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(30) % 10)
    return path


def test_a_recipe_says_everywhere_that_it_is_not_data_free(scans: Path, tmp_path: Path) -> None:
    notes = Notes()
    result = emptyset.run(recipe(scans), tmp_path / "run", monitor=notes)
    assert any(note.startswith("10 confusing of 30 real images") for note in notes.notes)
    (told,) = (r for r in result.metrics["training"] if "real_images_beside" in r)
    assert (told["real_images_beside"], told["chosen"], told["short"]) == (10, "confusing", [])
    assert [c["chosen"] for c in told["classes"]] == [1] * 10
    assert result.metrics["images"]["beside"]["images"] == str(scans)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "REAL images" in page
    assert "for analysis, not data-free" in page
    assert "from the network alone" not in page


def test_images_that_are_not_there_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"source.beside.images: there is no file or folder"):
        emptyset.run(recipe(tmp_path / "none.npz"), tmp_path / "run")


def test_other_images_behind_the_same_name_are_another_run(scans: Path, tmp_path: Path) -> None:
    emptyset.run(recipe(scans), tmp_path / "run")
    before = (tmp_path / "run" / "student.safetensors").read_bytes()
    again = emptyset.run(recipe(scans), tmp_path / "run")
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == before
    assert again.metrics["training"]
    with np.load(scans) as found:
        np.savez(scans, images=255 - found["images"], labels=found["labels"])
    emptyset.run(recipe(scans), tmp_path / "run")
    assert (tmp_path / "run" / "student.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"per_class": 0}, "expected at least 1, got the number 0"),
        ({"share": 1.0}, "less than 1"),
        ({"choose": "some"}, "'confusing', 'unconfusing' or 'all'"),
        ({"image": "x"}, "image"),
    ],
)
def test_a_wrong_setting_names_the_key(scans: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(EmptysetError, match=r"source.beside") as error:
        recipe(scans, **wrong)
    assert told in str(error.value)

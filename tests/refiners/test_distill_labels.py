"""What distillation asks of the labels of stored images: looked at once, before it trains."""

from collections.abc import Callable

import pytest
import torch
from small_teachers import two_convolutions
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import Images, StoredImages
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import Distill, DistillConfig

CLASSES = 5
PIXELS = torch.randn(7, 3, 8, 12, generator=torch.Generator().manual_seed(0))
ENTROPY = {"cross_entropy": 1.0}
MIXUP = {"mixing": "mixup"}
RIGHT = torch.tensor([0, 4, 2, 2, 1, 3, 0])


def trained(
    targets: Tensor | None, source: Callable[[ImageSet], object] = lambda images: images,
    **settings: object,
) -> Student:  # fmt: skip
    student = prepare(two_convolutions(classes=CLASSES), "w4a4")
    Calibrate(CalibrateConfig()).refine(student, ImageSet(PIXELS))
    config = DistillConfig(steps=2, batch_size=4, **settings)  # type: ignore[arg-type]
    Distill(config).refine(student, source(ImageSet(PIXELS, targets)), seed=3)  # type: ignore[arg-type]
    return student


def learnt(student: Student) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.program.named_parameters()}


def changed(index: int, value: float, kind: torch.dtype = torch.long) -> Tensor:
    """Right labels with one that is not."""
    targets = RIGHT.to(kind, copy=True)
    targets[index] = value
    return targets


@pytest.mark.parametrize("settings", [ENTROPY, MIXUP], ids=["cross entropy", "mixup"])
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (changed(3, 12), r"labels run from 0 to 12, but the teacher has 5 classes \(0 to 4\)"),
        (changed(0, CLASSES), "from 0 to 5"),
        (changed(6, -1), "labels run from -1 to 4"),
        (changed(6, -100), "labels run from -100 to 4"),
        (changed(2, 1, torch.float32), "integer type. Got float32"),
        (torch.full((7, 6), 1 / 6), r"or \(N, 5\). Got \(7, 6\)"),
        (torch.full((7, 5), torch.nan), "7 of 7 soft labels"),
    ],
)
def test_labels_that_are_no_classes_of_the_teacher_are_refused(
    targets: Tensor, said: str, settings: dict[str, object]
) -> None:
    with pytest.raises(ImagesError, match=f"^distill: .*{said}.*cross_entropy 0"):
        trained(targets, **settings)


class Streamed:
    """Images as files give them: in batches, with no set behind them."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.batches = images.batches

    def __len__(self) -> int:
        return len(self._images)


@pytest.mark.parametrize(
    "source", [Streamed, lambda images: StoredImages(images, seed=1)], ids=["stream", "source"]
)
def test_they_are_looked_at_wherever_stored_images_come_from(
    source: Callable[[ImageSet], object],
) -> None:
    assert isinstance(Streamed(ImageSet(PIXELS)), Images)
    with pytest.raises(ImagesError, match="labels run from 0 to 12"):
        trained(changed(3, 12), source, **ENTROPY)


def test_nothing_is_trained_before_the_look() -> None:
    student = prepare(two_convolutions(classes=CLASSES), "w4a4")
    Calibrate(CalibrateConfig()).refine(student, ImageSet(PIXELS))
    before = learnt(student)
    asked: list[int] = []

    class Counted(StoredImages):
        def next_batch(self, size: int) -> object:  # type: ignore[override]
            asked.append(size)
            return super().next_batch(size)

    distill = Distill(DistillConfig(steps=3, batch_size=4, cross_entropy=1.0))
    for targets, said in ((changed(1, 9), "from 0 to 9"), (None, "Set cross_entropy to 0")):
        source = Counted(ImageSet(PIXELS, targets), seed=0)
        with pytest.raises(ImagesError, match=said):
            distill.refine(student, source)
    assert asked == []
    assert all(torch.equal(value, before[name]) for name, value in learnt(student).items())


@pytest.mark.parametrize(
    "settings", [{}, {"mixing": "cutmix_images"}], ids=["divergence alone", "images mixed"]
)
def test_labels_that_nothing_is_learnt_from_may_be_anything(settings: dict[str, object]) -> None:
    expected = learnt(trained(None, **settings))
    for targets in (changed(3, 12), torch.full((7, 6), 1 / 6)):
        found = learnt(trained(targets, **settings))
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_class_indices_of_any_integer_type_teach_the_same(kind: torch.dtype) -> None:
    expected = learnt(trained(RIGHT, **ENTROPY))
    found = learnt(trained(RIGHT.to(kind), **ENTROPY))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_certain_probabilities_teach_what_class_indices_do(kind: torch.dtype) -> None:
    expected = learnt(trained(RIGHT, **ENTROPY))
    found = learnt(trained(torch.eye(CLASSES)[RIGHT].to(kind), **ENTROPY))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)

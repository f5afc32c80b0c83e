"""Diversity: by hand, with features that are known."""

import pytest
import torch
from torch import nn

from emptyset.errors import ImagesError
from emptyset.evaluate.diversity import diversity
from emptyset.evaluate.teacher_features import TeacherFeatures
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher() -> Teacher:
    """Features are the two pixels themselves, logits too."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(2))
    spec = InputSpec((1, 1, 2), (0.5,), (0.25,))
    return Teacher("test:eye", module.requires_grad_(False).eval(), spec)


def images(targets: torch.Tensor | None) -> ImageSet:
    rows = [[1.0, 0.0], [2.0, 0.0], [3.0, 3.0], [0.0, 1.0]]
    return ImageSet(torch.tensor(rows).view(4, 1, 1, 2), targets)


HALF = 0.5**0.5


@pytest.mark.parametrize("batch_size", [3, 256])
def test_cosines_and_agreement_are_those_counted_by_hand(batch_size: int) -> None:
    found = diversity(images(torch.tensor([0, 0, 1, 1])), teacher(), batch_size=batch_size)
    # Pairs: 01 1, 02 and 12 and 23 1/√2, 03 and 13 0.
    assert found.similarity == pytest.approx((1 + 3 * HALF) / 6)
    assert found.similarity_within_class == pytest.approx((1 + HALF) / 2)
    # Of 1, 2 and 0, 0; of 3, 0 and 3, 1.
    assert found.variance_within_class == pytest.approx((0.5 + 4.5 + 2.0) / 2)
    others = [(5, 4), (4, 4), (3, 1), (6, 3)]
    rows = [(1, 0), (1, 0), (1, 1), (0, 1)]
    expected = 0.0
    for (a, b), (c, d) in zip(rows, others, strict=True):
        expected += (a * c + b * d) / ((a * a + b * b) * (c * c + d * d)) ** 0.5 / 4
    assert found.similarity_to_others == pytest.approx(expected)
    # Image 2 has equal logits, and the first class wins.
    assert found.class_agreement == pytest.approx(3 / 4)
    assert (found.classes, found.count, found.labelled) == (2, 4, True)


def test_without_targets_the_teachers_classes_are_taken() -> None:
    found = diversity(images(None), teacher())
    assert found.class_agreement is None
    assert not found.labelled
    assert found.similarity_within_class == pytest.approx((1 + 2 * HALF) / 3)
    # Of 1, 2, 3 and 0, 0, 3; class 1 has one image.
    assert found.variance_within_class == pytest.approx(1 + 3)
    assert found.to_json()["count"] == 4


def test_soft_targets_count_as_their_likeliest_class() -> None:
    soft = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.0, 1.0]])
    hard = diversity(images(torch.tensor([0, 0, 1, 1])), teacher())
    assert diversity(images(soft), teacher()) == hard


def test_classes_of_one_image_have_nothing_within() -> None:
    pair = ImageSet(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2), torch.tensor([0, 1]))
    found = diversity(pair, teacher())
    assert (found.similarity_within_class, found.variance_within_class) == (None, None)


def test_one_image_is_like_nothing() -> None:
    with pytest.raises(ImagesError, match="at least 2"):
        diversity(ImageSet(torch.zeros(1, 1, 1, 2)), teacher())


def of_maps(last: nn.Module) -> Teacher:
    """Features are the two pixels; what ``last`` makes of them are the logits."""
    shaped = nn.Unflatten(1, (2, 1, 1))
    module = nn.Sequential(nn.Flatten(), shaped, last, nn.Flatten()).requires_grad_(False).eval()
    return Teacher("test:maps", module, InputSpec((1, 1, 2), (0.5,), (0.25,)))


def test_a_convolution_of_one_pixel_is_a_last_layer_for_every_measure() -> None:
    given = of_maps(nn.Conv2d(2, 3, 1))
    found, plain = diversity(images(None), given), diversity(images(None), teacher())
    assert found.features == plain.features == "penultimate" == TeacherFeatures(given).kind
    assert found.similarity == pytest.approx(plain.similarity)
    assert found.similarity_to_others == pytest.approx(plain.similarity_to_others)
    assert found.to_json()["features"] == "penultimate"


def test_logits_are_compared_for_want_of_a_last_layer_and_named_so() -> None:
    last = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).view(3, 2, 1, 1))
        last.bias.zero_()
    # A padded convolution sees more than one place.
    wide = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :, 1, 1] = last.weight[:, :, 0, 0]
    found = diversity(images(None), of_maps(wide))
    assert found.features == "logits" == TeacherFeatures(of_maps(wide)).kind
    # Logits (a, b, b) of the rows (1, 0), (2, 0), (3, 3), (0, 1).
    assert found.similarity == pytest.approx((1 + 2 / 3**0.5 + 2 / 6**0.5) / 6)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 2, 1, 1]), r"from 0 to 2, but the teacher has 2 classes \(0 to 1\)"),
        (torch.tensor([0, -1, 1, 1]), r"from -1 to 1"),
        (torch.full((4, 3), 1 / 3), r"2 classes.*\(4, 3\)"),
    ],
)
def test_labels_of_another_task_are_refused(targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        diversity(images(targets), teacher())


def test_a_network_of_one_output_says_how_alike_images_are() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 1)).requires_grad_(False).eval()
    single = Teacher("test:one", module, InputSpec((1, 1, 2), (0.5,), (0.25,)))
    found = diversity(images(None), single)
    assert found.classes == 1
    assert found.similarity == pytest.approx((1 + 3 * HALF) / 6)

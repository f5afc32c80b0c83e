"""How much memory a forward takes, and the batch that fits."""

import torch
from torch import Tensor, nn

from emptyset.graph.memory import BYTES_PER_GIGABYTE, COPIES, bytes_per_image, largest_batch
from emptyset.graph.student import Student, prepare
from emptyset.teachers.teacher import InputSpec, Teacher


class Widening(nn.Module):
    """3 channels to 5 to 7 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def student() -> Student:
    module = Widening().eval().requires_grad_(False)
    return prepare(
        Teacher("widening", module, InputSpec((3, 8, 6), (0.5,) * 3, (0.2,) * 3)), "w8a8"
    )


def test_the_peak_is_the_largest_set_of_tensors_alive_together() -> None:
    # The convolution's output and that of its ReLU are 5 x 8 x 6 floats each, the image 3 x 8 x 6.
    assert bytes_per_image(student()) == COPIES * 4 * (5 + 5) * 8 * 6


def test_the_batch_fits_and_is_never_empty() -> None:
    one = bytes_per_image(student())
    assert largest_batch(student(), 10.5 * one / BYTES_PER_GIGABYTE, at_most=64) == 10
    assert largest_batch(student(), 1.0, at_most=64) == 64
    assert largest_batch(student(), 1e-9, at_most=64) == 1


class SequenceFirst(nn.Module):
    """Tokens before images, then both on one axis: 12 tokens of 5 channels, widened to 13."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 2, stride=2)
        self.widen, self.narrow = nn.Linear(5, 13), nn.Linear(13, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1).contiguous()
        wide = self.widen(tokens)
        rows = torch.relu(wide.reshape(-1, 13))
        return self.narrow(rows).reshape(12, -1, 7).mean(0)


def test_images_may_come_second_or_share_an_axis() -> None:
    module = SequenceFirst().eval().requires_grad_(False)
    teacher = Teacher("sequence first", module, InputSpec((3, 8, 6), (0.5,) * 3, (0.2,) * 3))
    # A fake quantizer stands behind each, so that the largest alive is one: 12 tokens of 13.
    assert bytes_per_image(prepare(teacher, "w8a8")) == COPIES * 4 * 12 * 13

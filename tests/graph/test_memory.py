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

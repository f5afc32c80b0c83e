"""Networks that write over what they read: what is said of images is the same, and they stay."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.images.image_set import ImageSet
from emptyset.inversion import engine
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.written_over import read_copies
from emptyset.measurement import predictor
from emptyset.pipeline import select, synthesize
from emptyset.teachers.teacher import InputSpec, Teacher

SPEC = InputSpec((3, 7, 9), (0.5,) * 3, (0.25,) * 3)


class PreActivated(nn.Module):
    """Its shortcuts are added in place, over what the normalisation has read, or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.last = nn.Linear(6, 5)
        self.in_place = in_place
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x -= 0.25
        else:
            x = x - 0.25
        x = self.stem(x)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(F.relu(norm(x)))
            if self.in_place:
                x += y
            else:
                x = x + y
        return self.last(x.mean((2, 3)))


def teacher_of(in_place: bool) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PreActivated(in_place=in_place).requires_grad_(False).eval()
    return Teacher("test", network, SPEC)


@pytest.fixture
def pair() -> tuple[Teacher, Teacher]:
    return teacher_of(True), teacher_of(False)


def images() -> Tensor:
    return torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(1))


def test_what_is_read_is_copied_where_it_is_written_over() -> None:
    for in_place, copies in ((True, 3), (False, 0)):
        network: Any = teacher_of(in_place).module
        assert read_copies(network, network.norms, images()) == copies


def test_statistics_and_logits_are_those_of_the_plain_network(pair: tuple[Teacher, ...]) -> None:
    ours, plain = (FrozenTeacher(teacher).look(images()) for teacher in pair)
    torch.testing.assert_close(ours.logits, plain.logits)
    for one, other in zip(ours.layers, plain.layers, strict=True):
        torch.testing.assert_close(one.shift, other.shift)
        torch.testing.assert_close(one.square, other.square)


def test_images_are_made_alike(pair: tuple[Teacher, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever this machine's hardware would choose: comparisons are of float32.
    monkeypatch.setattr(engine, "has_fast_bfloat16", lambda _: False)
    ours, plain = (synthesize(t, "zeroq", count=4, steps=3, seed=0).images for t in pair)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_the_callers_images_stay(pair: tuple[Teacher, ...]) -> None:
    given = ImageSet(images())
    ours, plain = (predictor(teacher)(given.images) for teacher in pair)
    torch.testing.assert_close(ours, plain)
    select(given, pair[0], "energy", keep=0.5)
    assert torch.equal(given.images, images())

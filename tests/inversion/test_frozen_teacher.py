"""The copy of the teacher: what it holds, and what it does not hold on to."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.inversion.compilation import Execution
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.schedules import Plateau
from emptyset.inversion.updates import Adam
from emptyset.teachers.teacher import InputSpec, Teacher

EXACT = Execution(compiled=False, dtype=torch.float32)


def objective(seen: Seen) -> Tensor:
    return torch.stack([layer.square.sum() for layer in seen.layers]).sum()


METHOD = Method("test", objective, (Group(Adam(), Plateau(0.1)),), steps=3, batch_size=4)


@pytest.fixture
def frozen() -> FrozenTeacher:
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5),
        nn.Flatten(), nn.Linear(5 * 2 * 3, 4),
    ).eval()  # fmt: skip
    return FrozenTeacher(Teacher("test", module, InputSpec((2, 6, 7), (0.5,) * 2, (0.25,) * 2)))


def watched(frozen: FrozenTeacher) -> list[weakref.ref[Tensor]]:
    """References, which keep nothing alive, to every BatchNorm input from now on."""
    found: list[weakref.ref[Tensor]] = []

    def watch(_module: nn.Module, given: tuple[Any, ...]) -> None:
        found.append(weakref.ref(given[0]))

    for layer in frozen.layers:
        layer.module.register_forward_pre_hook(watch)
    return found


def test_a_look_while_a_loss_is_there_keeps_no_feature_maps(frozen: FrozenTeacher) -> None:
    maps = watched(frozen)
    with frozen.loss_of(METHOD, EXACT):
        for number in range(1, 4):
            frozen.look(torch.ones(5, 2, 6, 7))
            assert len(maps) == 2 * number
            assert all(one() is None for one in maps)


def test_a_loss_keeps_no_feature_maps_but_for_its_gradient(frozen: FrozenTeacher) -> None:
    maps = watched(frozen)
    with frozen.loss_of(METHOD, EXACT) as loss:
        images = torch.ones(5, 2, 6, 7, requires_grad=True)
        value, _ = loss([images], None, {})
        (gradient,) = torch.autograd.grad(value, images)
        assert gradient.abs().max() > 0
        del value
        assert len(maps) == 2
        assert all(one() is None for one in maps)


def test_features_are_those_before_a_classifier_of_one_pixel_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.output = nn.Conv2d(5, 4, 1)
            self.unused = nn.Linear(3, 4)  # registered last, yet never called

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.output(self.body(x)).flatten(1)
            return logits

    body = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    net = Net().eval()
    spec = InputSpec((2, 6, 7), (0.5,) * 2, (0.25,) * 2)
    frozen = FrozenTeacher(Teacher("test", net, spec))
    images = torch.randn(3, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    seen = frozen.look(images)
    assert frozen.feature_kind == "penultimate"
    assert seen.features is not None
    torch.testing.assert_close(seen.features, body(images).flatten(1))


def test_without_a_last_layer_there_are_no_features() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    frozen = FrozenTeacher(Teacher("test", net, InputSpec((2, 6, 7), (0.5,) * 2, (0.25,) * 2)))
    assert frozen.feature_kind == "logits"
    assert frozen.look(torch.ones(3, 2, 6, 7)).features is None

"""A network whose BatchNorms never saw an image is told of."""

import torch
from torch import nn

from emptyset.images.input_spec import InputSpec
from emptyset.teachers.teacher import Teacher
from emptyset.teachers.untrained import untrained

SPEC = InputSpec((3, 6, 5), (0.5,) * 3, (0.25,) * 3)


def net(*norms: nn.Module) -> Teacher:
    layers = [layer for norm in norms for layer in (nn.Conv2d(3, 3, 1), norm)]
    return Teacher("a net", nn.Sequential(*layers).eval(), SPEC)


def test_new_statistics_tell_a_new_network() -> None:
    told = untrained(net(nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    assert told is not None
    assert "a net: all 2 BatchNorms" in told
    assert "--weights" in told


def test_one_batch_of_training_is_enough() -> None:
    seen = nn.BatchNorm2d(3)
    seen(torch.rand(4, 3, 6, 5))
    assert untrained(net(nn.BatchNorm2d(3), seen)) is None


def test_without_kept_statistics_nothing_is_told() -> None:
    assert untrained(net(nn.Identity())) is None
    assert untrained(net(nn.BatchNorm2d(3, track_running_stats=False))) is None

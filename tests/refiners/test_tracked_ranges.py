"""Activation ranges beside a source: the average of whole images' extremes, as released or not."""

import pytest
import torch
import torch.nn.functional as F
from learning_beside_source import BATCH, BITS, PUBLISHED, batches_of, make
from small_teachers import two_convolutions

from emptyset.graph.student import prepare
from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.training import Training
from emptyset.teachers.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


@pytest.mark.parametrize("mixing", ["none", "mixup"])
@pytest.mark.parametrize(("legacy", "tracked"), [(False, 12), (True, 4)])
def test_a_range_is_the_average_of_what_whole_images_give(
    legacy: bool, tracked: int, mixing: str, teacher: Teacher
) -> None:
    student, source = prepare(teacher, BITS, **PUBLISHED), make("gdfq", teacher)
    config = DistillConfig(
        preset="gdfq", steps=400, warm_up=0.03, batch_size=BATCH, legacy=legacy, mixing=mixing
    )
    training = Training(student, source, config.course(BITS, source), 0)
    given = batches_of(source)
    with training._learning():
        for number in range(14):
            training._update(number)
        found = float(student.quantizers["network.relu.output"].scale)
    net, highest = teacher.module, 0.0
    low, high = net.conv1.weight.amin((1, 2, 3)), net.conv1.weight.amax((1, 2, 3))
    step = (high.clamp(min=0) - low.clamp(max=0)) / 15
    zero = (-8 - low.clamp(max=0) / step).round()
    weight = torch.fake_quantize_per_channel_affine(
        net.conv1.weight, step, zero.to(torch.int32), 0, -8, 7
    )
    for count, lesson in enumerate(given[:tracked], 1):
        read = F.relu(net.bn1(F.conv2d(lesson.images, weight, padding=1)))
        highest = 0.9 * highest + 0.1 * float(read.max())
        if legacy:
            highest = highest / (1 - 0.9**count)
    expected = highest if legacy else highest / (1 - 0.9**tracked)
    assert found == pytest.approx(expected / 15, rel=1e-5)

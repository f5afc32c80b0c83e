"""A frozen student whose BatchNorm is in training mode, against torch's own layers in that mode."""

import copy
from typing import Any

import pytest
import torch
from learning_beside_source import PUBLISHED, make, taught
from small_teachers import two_convolutions
from torch import Tensor, nn

from emptyset.errors import RecipeError
from emptyset.exporters.certificate import certify
from emptyset.exporters.onnx import export
from emptyset.graph.moving_statistics import statistics
from emptyset.graph.originals import trainable
from emptyset.graph.residual_bodies import Tapped
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.quantizers.bits import Bits
from emptyset.teachers.teacher import Teacher

EPSILON, MOMENTUM = 2e-3, 0.25


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    made = two_convolutions(equal_norms=False)
    for layer in made.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps, layer.momentum = EPSILON, MOMENTUM
    return made


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def running(network: nn.Module) -> list[Tensor]:
    """Means, and 1 / deviations, of a network of torch's own layers, in order."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [x for n in norms for x in (n.running_mean, 1 / (n.running_var + EPSILON).sqrt())]


def test_outputs_statistics_and_gradients_are_those_of_training_mode(teacher: Teacher) -> None:
    student = prepare(teacher, Bits.parse("w4a4"), plan="every_layer", batch_norm="frozen")
    moving = Tapped(student.program, [], moves_statistics=True)
    theirs = copy.deepcopy(teacher.module).train().requires_grad_(True)
    ours = trainable(student.program)
    for parameter in ours.values():
        parameter.requires_grad_(True)
    with student.unquantized():
        for seed, count in enumerate((9, 4)):
            shown, expected = moving(images(count, seed))[0], theirs(images(count, seed))
            torch.testing.assert_close(shown, expected, atol=2e-5, rtol=1e-4)
        shown.square().sum().backward()
        expected.square().sum().backward()
        found = [x.flatten() for x in statistics(student.program).values()]
        for own, torchs in zip(found, running(theirs), strict=True):
            torch.testing.assert_close(own, torchs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            ours["conv1.weight"].grad, theirs.conv1.weight.grad, atol=1e-3, rtol=1e-3
        )
        # The student itself normalises by what is stored now, image by image.
        theirs.eval()
        torch.testing.assert_close(
            student(images(1, 5)), theirs(images(1, 5)), atol=2e-5, rtol=1e-4
        )


def learnt(teacher: Teacher, shown: Any, **settings: Any) -> Student:
    own = {**PUBLISHED, "preset": "zaq", "learning_rate": 1e-3, "legacy": True, **settings}
    return taught(teacher, shown, **own)


def test_legacy_zaq_moves_them_and_the_file_has_what_was_stored(
    teacher: Teacher, tmp_path: Any
) -> None:
    student = learnt(teacher, make("zaq", teacher))
    before = dict(zip(statistics(student.program), running(teacher.module), strict=True))
    for path, value in statistics(student.program).items():
        assert not torch.allclose(value.flatten(), before[path], rtol=1e-3), path
        torch.testing.assert_close(student.originals[path].flatten(), before[path])
    with student.float_mode():
        torch.testing.assert_close(
            student(images(3, 1)), teacher.module(images(3, 1)), atol=1e-5, rtol=0
        )
    export(student, tmp_path / "model.onnx")
    assert certify(tmp_path / "model.onnx", student, ImageSet(images(7, 2))).holds


def test_without_the_generators_lesson_every_update_moves_them_once(teacher: Teacher) -> None:
    student = learnt(teacher, ImageSet(images(6, 3)), steps=1, relations=0.0, batch_size=6)
    # The first layer's inputs do not depend on what is learnt: its weights are quantized, though.
    fresh = prepare(teacher, Bits.parse("w4a4"), plan="every_layer", batch_norm="frozen")
    assert statistics(student.program).keys() == statistics(fresh.program).keys()
    moved = statistics(student.program)["bn1.frozen_mean"].flatten()
    stored = teacher.module.bn1.running_mean
    batch = (moved - (1 - MOMENTUM) * stored) / MOMENTUM
    with torch.no_grad():
        exact = teacher.module.conv1(images(6, 3)).mean((0, 2, 3))
    # Four bits of images and weights: near what float gives, far from what was stored.
    assert (batch - exact).abs().mean() < 0.2 * (stored - exact).abs().mean()


def test_presets_without_a_released_training_mode_move_nothing(teacher: Teacher) -> None:
    student = learnt(teacher, make("gdfq", teacher), preset="gdfq")
    assert not any(path in student.originals for path in statistics(student.program))
    assert not any(
        path in learnt(teacher, make("zaq", teacher), legacy=False).originals
        for path in statistics(student.program)
    )


def test_folded_statistics_cannot_move(teacher: Teacher) -> None:
    with pytest.raises(RecipeError, match="batch_norm 'frozen'"):
        learnt(teacher, make("zaq", teacher), batch_norm="fold")

"""Bias absorption: exact where nothing is clipped, and only where it can be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.graph.student import Student, prepare
from emptyset.images.no_images import NO_IMAGES
from emptyset.refiners.bias_absorption import BiasAbsorption, BiasAbsorptionConfig
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig

DATA_FREE = CalibrateConfig(activation_values="batch_norm")


def high_biases(small: Any, module: nn.Module) -> Any:
    """A teacher whose first BatchNorm shifts channels 1 and 3 far above zero."""
    teacher = small.teacher_of(module)
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[[1, 3]] = torch.tensor([0.5, -0.4])
        norm.bias[[1, 3]] = torch.tensor([16.0, 6.0])
    return teacher


def absorbed(student: Student, shown: Any = NO_IMAGES, **options: Any) -> Student:
    BiasAbsorption(BiasAbsorptionConfig(**options)).refine(student, shown)
    return student


def test_what_lies_above_three_deviations_moves_to_the_next_layer(small: Any) -> None:
    net = small.Plain()
    student = absorbed(prepare(high_biases(small, net), "w8a8", plan="every_layer"))
    program, norm = student.program, net.first[1]
    before = prepare(student.teacher, "w8a8", plan="every_layer").program
    spread = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    amount = (norm.bias - 3 * spread).clamp(min=0)
    assert [c for c in range(6) if amount[c] > 0] == [1, 3]
    given = before.first.get_submodule("0").bias - program.first.get_submodule("0").bias
    torch.testing.assert_close(given, amount)
    taken = program.second.get_submodule("0").bias - before.second.get_submodule("0").bias
    weight = before.second.get_submodule("0").weight[:, :, 0, 0]
    torch.testing.assert_close(taken, weight @ amount, atol=1e-5, rtol=1e-5)


def test_nothing_changes_for_images_on_which_nothing_is_clipped(small: Any) -> None:
    net = small.Plain()
    student = prepare(high_biases(small, net), "w8a8", plan="every_layer")
    # So far below that no value of these images reaches zero.
    absorbed(student, deviations=6.5)
    assert "first.0.absorbed" in dict(student.program.named_parameters())
    x = small.images(40).images
    with student.unquantized():
        torch.testing.assert_close(student(x), net(x), atol=2e-4, rtol=1e-5)
    with student.float_mode():
        torch.testing.assert_close(student(x), net(x), atol=2e-4, rtol=1e-5)


def test_activations_span_less(small: Any) -> None:
    teacher = high_biases(small, small.Plain())
    spans = []
    for student in (prepare(teacher, "w8a8"), absorbed(prepare(teacher, "w8a8"))):
        Calibrate(DATA_FREE).refine(student, NO_IMAGES)
        spans.append(student.quantizers["first.2.relu.output"].scale.item())
    assert spans[1] < spans[0]


def test_layers_that_pad_are_left_alone_unless_asked(small: Any) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = small.block(3, 6, 1), nn.Conv2d(6, 5, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x))).mean((2, 3))

    teacher = high_biases(small, Padded())
    assert absorbed(prepare(teacher, "w8a8")).originals == {}
    student, x = absorbed(prepare(teacher, "w8a8"), deviations=6.5, padded=True), small.images(9)
    assert student.originals.keys() == {"first.0.bias", "second.bias"}
    inner = student.program.state_dict()
    shifted = F.relu(F.conv2d(x.images, inner["first.0.weight"], inner["first.0.bias"]))
    found = F.conv2d(shifted, inner["second.weight"], inner["second.bias"], padding=1)
    net = student.teacher.module
    expected = F.conv2d(F.relu(net.first(x.images)), net.second.weight, net.second.bias, padding=1)
    away = found - expected
    # Wrong at the border, as the docstring says, and nowhere else.
    assert away[:, :, 1:-1, 1:-1].abs().max() < 1e-4
    assert away.abs().max() > 0.1


@pytest.mark.parametrize(
    "between",
    [F.relu6, lambda x: F.leaky_relu(x, 0.1), lambda x: F.avg_pool2d(F.relu(x), 2, padding=1)],
    ids=["relu6", "leaky", "padded average"],
)
def test_behind_anything_but_a_relu_nothing_moves(between: Any, small: Any) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = small.block(3, 6, 1), nn.Conv2d(6, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(between(self.first(x))).mean((2, 3))

    assert absorbed(prepare(high_biases(small, Other()), "w8a8")).originals == {}


class Reduced(nn.Module):
    """A block with a ReLU, something, and a layer."""

    def __init__(self, small: Any, between: Callable[[Tensor], Tensor], inputs: int = 6) -> None:
        super().__init__()
        self.first, self.between = small.block(3, 6, 1), between
        self.second = nn.Conv2d(inputs, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(F.relu(self.first(x)))).mean((2, 3))


@pytest.mark.parametrize(
    ("between", "inputs", "moves"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, 1), 6, True),
        (lambda x: F.adaptive_avg_pool2d(F.pad(x, (1, 2, 1, 0)), 1), 6, False),
        (lambda x: F.pad(x, (1, 2)).mean((2, 3), keepdim=True), 6, False),
        (lambda x: F.avg_pool2d(F.pad(x, (1, 2)), 3)[..., 1:-1], 6, False),
        (lambda x: F.max_pool2d(F.pad(x, (0, 2)), 2), 6, False),
        (lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2), 6, True),
        (lambda x: F.interpolate(F.pad(x, (0, 2)), size=(5, 7), mode="bilinear"), 6, False),
        (lambda x: F.adaptive_avg_pool2d(F.pixel_shuffle(x[:, :4], 2), 3), 1, False),
        (lambda x: x.mean(1, keepdim=True), 1, False),
    ],
    ids=[
        "average", "average of zeros too", "mean of zeros too", "border of averages cut off",
        "largest of zeros", "largest beside zeros", "interpolated with zeros",
        "pool of shuffled pixels", "mean over channels",
    ],
)  # fmt: skip
def test_nothing_moves_where_it_would_not_arrive_in_every_value(
    between: Callable[[Tensor], Tensor], inputs: int, moves: bool, small: Any
) -> None:
    teacher = high_biases(small, Reduced(small, between, inputs))
    # Nothing is clipped on these images, so nothing may change.
    student = absorbed(prepare(teacher, "w8a8", plan="edges_8bit"), deviations=6.5)
    assert ("first.0.absorbed" in dict(student.program.named_parameters())) is moves
    x = small.images(40).images
    expected = teacher.module(x)
    for mode in (student.unquantized, student.float_mode):
        with mode():
            torch.testing.assert_close(student(x), expected, atol=2e-4, rtol=1e-5)


def test_one_layer_alone_costs_what_it_cost_before(small: Any) -> None:
    teacher = high_biases(small, small.Plain())
    x, costs = small.images(20).images, []
    expected = teacher.module(x)
    for student in (prepare(teacher, "w8a8"), absorbed(prepare(teacher, "w8a8"))):
        Calibrate(DATA_FREE).refine(student, NO_IMAGES)
        costs.append([])
        for layer in student.layers():
            with student.only_layer(layer.name):
                costs[-1].append(((student(x) - expected).norm() / expected.norm()).item())
    # Half a bias moved and half not would cost 0.1 and more.
    assert costs[1] == pytest.approx(costs[0], abs=0.01)


def test_a_calibrated_student_gets_its_ranges_anew_and_a_state_repeats_it(small: Any) -> None:
    student, shown = prepare(high_biases(small, small.Plain()), "w8a8"), small.images(16)
    Calibrate(CalibrateConfig()).refine(student, shown)
    absorbed(student, shown)
    again = prepare(student.teacher, "w8a8")
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(shown.images), student(shown.images))
    other = absorbed(prepare(student.teacher, "w8a8"))
    Calibrate(CalibrateConfig()).refine(other, shown)
    assert torch.equal(other(shown.images), student(shown.images))


def test_what_it_needs_is_asked_for(small: Any) -> None:
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 10, 5))
    with pytest.raises(UnsupportedModelError, match="only BatchNorm tells"):
        absorbed(prepare(small.teacher_of(bare), "w8a8"))
    frozen = prepare(
        small.teacher_of(small.Plain()), "w8a8", plan="every_layer", batch_norm="frozen"
    )
    with pytest.raises(UnsupportedModelError, match="batch_norm 'fold'"):
        absorbed(frozen)
    with pytest.raises(ValueError, match="deviations must be above 0"):
        BiasAbsorptionConfig(deviations=-1.0)

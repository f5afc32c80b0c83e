"""Changes of the graph: what they compute, and that a saved state repeats them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.blocks import find_blocks
from emptyset.graph.edits import (
    add_bias,
    channel_clip_bounds,
    clip_per_channel,
    lower_uniform_clips,
    reorder_inputs,
)
from emptyset.graph.operators import attribute, name_of, weighted_layers
from emptyset.graph.student import Student, prepare
from emptyset.quantizers.bias import BiasFakeQuantizer
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Teacher]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, bias=False)
        self.head = nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.first(x), 0.0, 0.4)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


@pytest.fixture
def student(teacher_of: Make) -> Student:
    return prepare(teacher_of(Net()), "w4a4")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 3, 8, 10, generator=torch.Generator().manual_seed(1))


LOW, HIGH = torch.tensor([0.0, 0.0, -0.2, 0.1]), torch.tensor([0.3, 0.4, 0.2, float("inf")])
INDEX = torch.tensor([0, 1, 2, 3, 1, 1])


def change(student: Student) -> None:
    """Every kind of change at once."""
    program = student.program
    clip = next(n for n in program.graph.nodes if name_of(n) == "hardtanh")
    clip_per_channel(program, clip, LOW, HIGH)
    _, second, head = weighted_layers(program)
    reorder_inputs(program, second, INDEX)
    for layer in (second, head):
        add_bias(program, layer, integer_biases=student.integer_biases)
    program.recompile()
    for name, values in (("second", [0.1, -0.2, 0.3, 0.0, 0.5]), ("head", [0.5] * 6)):
        attribute(program, f"{name}.bias").copy_(torch.tensor(values))


def changed_net(net: Net, x: Tensor) -> Tensor:
    x = torch.maximum(torch.minimum(net.first(x), HIGH.view(-1, 1, 1)), LOW.view(-1, 1, 1))
    x = F.conv2d(x[:, INDEX], net.second.weight[:, INDEX])
    x = x + torch.tensor([0.1, -0.2, 0.3, 0.0, 0.5]).view(-1, 1, 1)
    return net.head(F.relu(x).mean((2, 3))) + 0.5


def test_each_change_computes_what_it_says(student: Student, x: Tensor) -> None:
    change(student)
    with student.float_mode():
        torch.testing.assert_close(student(x), changed_net(student.teacher.module, x))
    assert student.layers()[1].weight_shape == (5, 6, 3, 3)
    assert student.layers()[1].input_quantizer is not None
    # Plan `integer` rounds the biases that are new as it rounds the others.
    rounded = [m for m in student.program.modules() if isinstance(m, BiasFakeQuantizer)]
    assert len(rounded) == 3


def test_a_saved_state_repeats_every_change(student: Student, x: Tensor) -> None:
    names = list(student.quantizers)
    change(student)
    assert list(student.quantizers) == names
    from emptyset.images.image_set import ImageSet

    Calibrate(CalibrateConfig()).refine(student, ImageSet(x))
    fresh = prepare(student.teacher, "w4a4")
    fresh.load_state_dict(student.state_dict())
    for other in (fresh, student.copy(), student.copy().copy()):
        assert list(other.quantizers) == names
        assert torch.equal(other(x), student(x))
    blocks, out = find_blocks(fresh), x
    for block in blocks:
        out = block(out)
    torch.testing.assert_close(out, fresh(x))


def test_channels_that_were_reordered_twice_are_read_in_both_orders(
    student: Student, x: Tensor
) -> None:
    _, second, _ = weighted_layers(student.program)
    reorder_inputs(student.program, second, INDEX)
    reorder_inputs(student.program, second, torch.tensor([5, 0]))
    student.program.recompile()
    net = student.teacher.module
    hidden = F.hardtanh(net.first(x), 0.0, 0.4)[:, [1, 0]]
    expected = F.relu(F.conv2d(hidden, net.second.weight[:, [1, 0]])).mean((2, 3))
    with student.float_mode():
        torch.testing.assert_close(student(x), net.head(expected))


@pytest.mark.parametrize(
    ("bounds", "kind"),
    [((0.0, float("inf")), "relu"), ((-0.1, 0.4), "clamp"), ((0.0, 0.5), "clamp")],
)
def test_bounds_that_all_channels_share_become_a_plain_clip(
    bounds: tuple[float, float], kind: str, student: Student, x: Tensor
) -> None:
    program = student.program
    clip = next(n for n in program.graph.nodes if name_of(n) == "hardtanh")
    clip_per_channel(program, clip, *(torch.full((4,), end) for end in bounds))
    program.recompile()
    with student.float_mode():
        before = student(x)
        assert lower_uniform_clips(program) == 1
        torch.testing.assert_close(student(x), before)
    assert not any(channel_clip_bounds(program, n) for n in program.graph.nodes)
    assert kind in {name_of(n) for n in program.graph.nodes}


def test_bounds_that_differ_stay(student: Student) -> None:
    clip = next(n for n in student.program.graph.nodes if name_of(n) == "hardtanh")
    clip_per_channel(student.program, clip, LOW, HIGH)
    assert lower_uniform_clips(student.program) == 0


@pytest.mark.parametrize(
    ("layer", "before", "around"),
    [
        (nn.Linear(3, 4, bias=False), lambda x: x.permute(0, 2, 3, 1), (1, 1, 4)),
        (nn.Conv1d(3, 4, 3, bias=False), lambda x: x.flatten(2), (4, 1)),
        (nn.Conv3d(1, 4, 3, bias=False, padding=1), lambda x: x.unsqueeze(1), (4, 1, 1, 1)),
    ],
    ids=["channels last", "conv1d", "conv3d"],
)
def test_bounds_and_biases_are_those_of_the_channels_wherever_these_lie(
    layer: nn.Module, before: Callable[[Tensor], Tensor], around: tuple[int, ...],
    x: Tensor, teacher_of: Make,
) -> None:  # fmt: skip
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return F.hardtanh(self.layer(before(x)), 0.0, 0.4).flatten(1)

    student = prepare(teacher_of(Placed()), "w4a4", plan="every_layer")
    clip = next(n for n in student.program.graph.nodes if name_of(n) == "hardtanh")
    clip_per_channel(student.program, clip, LOW, HIGH)
    add_bias(student.program, weighted_layers(student.program)[0], integer_biases=False)
    student.program.recompile()
    bias = torch.tensor([0.1, -0.2, 0.3, 0.0])
    attribute(student.program, "layer.bias").copy_(bias)
    with student.float_mode():
        found = student(x)
    hidden = layer(before(x)) + bias.view(around)
    expected = torch.maximum(torch.minimum(hidden, HIGH.view(around)), LOW.view(around))
    torch.testing.assert_close(found, expected.flatten(1))

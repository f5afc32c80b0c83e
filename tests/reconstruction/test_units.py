"""Units: blocks or layers, each a function that equal ones share."""

from collections.abc import Callable

import pytest
import torch
from tests.fixtures.small_teachers import Dense
from torch import Tensor, nn

from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.reconstruction.graph_function import GraphFunction
from emptyset.reconstruction.units import read_twice, units_of, weight_paths
from emptyset.teachers.teacher import Teacher

PLANS = [("edges_8bit", "fold"), ("every_layer", "frozen"), ("integer", "fold")]


class AsIs:
    """Quantizers that do what the student's own do."""

    def __init__(self, student: Student, function: GraphFunction) -> None:
        self.student, self.names = student, function.quantizers
        self.paths = weight_paths(student)

    def __call__(self, number: int, x: Tensor | None) -> Tensor:
        name = self.names[number]
        if x is None:
            x = self.student.program.get_parameter(self.paths[name])
        return self.student.quantizers[name](x)

    def rounded_bias(self, inputs: int, weight: int, bias: Tensor) -> Tensor:
        scales = [self.student.quantizers[self.names[n]].scale.double() for n in (inputs, weight)]
        step = (scales[0].float() * scales[1].float()).double()
        return ((bias.double() / step).round() * step).float()


@pytest.mark.parametrize(("plan", "batch_norm"), PLANS)
def test_the_function_of_a_block_is_the_block(
    plan: str, batch_norm: str, teacher: Teacher, student_of, images: ImageSet
) -> None:
    student = student_of(teacher, "w3a4", plan, batch_norm=batch_norm)
    x = images.images
    for block in find_blocks(student):
        function = GraphFunction(student, block.module, tuple(weight_paths(student)), torch.float32)
        out = function(x, AsIs(student, function), function.constant_values())
        assert torch.equal(out, block(x))
        assert set(block.quantizers) <= set(function.quantizers)
        x = out


@pytest.mark.parametrize(("plan", "batch_norm"), PLANS)
def test_equal_blocks_are_one_function(
    plan: str, batch_norm: str, teacher: Teacher, student_of: Callable[..., Student]
) -> None:
    student = student_of(teacher, "w3a4", plan, batch_norm=batch_norm)
    structures = [
        GraphFunction(student, block.module, tuple(weight_paths(student)), dtype).structure
        for dtype in (torch.float32, torch.bfloat16)
        for block in find_blocks(student)
    ]
    assert [structures.index(one) for one in structures] == [0, 1, 1, 1, 4, 5, 6, 6, 6, 9]


def test_products_in_half_are_close_to_those_in_float(
    teacher: Teacher, student_of, images: ImageSet
) -> None:
    student = student_of(teacher, "w8a8")
    block = find_blocks(student)[0]
    weights = tuple(weight_paths(student))
    outs = []
    for dtype in (torch.float32, torch.bfloat16):
        function = GraphFunction(student, block.module, weights, dtype)
        outs.append(function(images.images, AsIs(student, function), function.constant_values()))
    assert outs[1].dtype == torch.float32
    assert 0 < (outs[0] - outs[1]).abs().max().item() < 0.02 * outs[0].abs().max().item()


@pytest.mark.parametrize(("plan", "batch_norm"), PLANS)
def test_layers_start_where_their_lead_ends_and_end_behind_their_clip(
    plan: str, batch_norm: str, teacher: Teacher, student_of, images: ImageSet
) -> None:
    student = student_of(teacher, "w3a4", plan, batch_norm=batch_norm)
    blocks = find_blocks(student)
    with student.float_mode():
        x = blocks[0](images.images)
        module = teacher.module.units[0]
        first, second = units_of(student, blocks[1], by_layer=True)
        middle = torch.relu(module.norm1(module.conv1(x)))
        torch.testing.assert_close(first.body(x), middle, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(second.lead(x), middle, atol=1e-5, rtol=1e-5)
        expected = module.norm2(module.conv2(middle))
        torch.testing.assert_close(second.body(middle), expected, atol=1e-5, rtol=1e-5)
    assert first.lead is None
    assert (first.name, second.name) == ("units.0.conv1", "units.0.conv2")
    assert first.weights == ("units.0.conv1.weight",)
    owned = [*first.weights, *first.activations, *second.weights, *second.activations]
    assert len(owned) == len(set(owned))
    assert set(owned) <= set(blocks[1].quantizers)


def test_a_long_stretch_is_worked_on_layer_by_layer(
    teacher_of: Callable[..., Teacher], student_of: Callable[..., Student], images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    teacher = teacher_of(Dense())
    student, module = student_of(teacher, "w4a8"), teacher.module
    stretch = find_blocks(student)[1]
    assert [unit.name for unit in units_of(student, stretch, by_layer=False)] == [stretch.name]
    monkeypatch.setattr("emptyset.graph.blocks.LARGEST_BLOCK", 3)
    units = units_of(student, stretch, by_layer=False)
    assert [unit.name for unit in units] == [f"convs.{i}" for i in range(4)]
    with student.float_mode():
        features = [torch.relu(module.first(images.images))]
        for unit, conv in zip(units, module.convs, strict=True):
            read = torch.cat(features, 1)
            inputs = features[0] if unit.lead is None else unit.lead(features[0])
            torch.testing.assert_close(inputs, read)
            features.append(torch.relu(conv(read)))
            torch.testing.assert_close(unit.body(read), features[-1], atol=1e-5, rtol=1e-5)


def test_every_quantizer_but_the_images_is_learnt_once(
    teacher: Teacher, student_of: Callable[..., Student]
) -> None:
    student = student_of(teacher, plan="integer")
    units = [u for b in find_blocks(student) for u in units_of(student, b, by_layer=False)]
    learnt = [name for unit in units for name in (*unit.weights, *unit.activations)]
    assert sorted(learnt) == sorted(set(student.quantizers) - {"input"})
    assert [unit.channel_axis for unit in units] == [1, 1, 1, 1, 1]


class Twice(nn.Module):
    """One convolution as the first and as an inner layer: 8 bits here, 3 there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(torch.relu(self.conv(x))))
        return self.linear(x.mean((2, 3)))


def test_a_weight_with_two_grids_is_not_learnt(teacher_of) -> None:
    student = prepare(teacher_of(Twice()), "w3a3", plan="edges_8bit")
    assert read_twice(student) == ["conv.weight", "conv.weight.2"]
    units = [u for b in find_blocks(student) for u in units_of(student, b, by_layer=False)]
    assert [name for unit in units for name in unit.weights] == ["linear.weight"]

"""Which units are compiled, in which precision, and how much memory is left for caches."""

from collections.abc import Callable

import pytest
import torch

from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.inversion import compilation
from emptyset.reconstruction.execution import Execution, Work, in_half, worth_compiling
from emptyset.reconstruction.memory import measured_sizes
from emptyset.reconstruction.units import units_of
from emptyset.teachers.teacher import Teacher

CPU = torch.device("cpu")
# Two residual layers of ResNet-20 at batch 32.
BIG = Work("big", layers=2, elements=1_000_000, operators=18, steps=3_000)


def test_compiling_pays_for_many_steps_or_for_many_equal_units() -> None:
    few = Work("few", 2, 1_000_000, 18, steps=300)
    assert worth_compiling([few], CPU, 1) == (False,)
    assert worth_compiling([few] * 6, CPU, 1) == (True,) * 6
    assert worth_compiling([few, BIG, few], CPU, 1) == (False, True, False)
    assert worth_compiling([BIG], CPU, 64) == (False,)


def test_nothing_is_compiled_where_nobody_measured_it() -> None:
    assert worth_compiling([BIG], torch.device("mps"), 1) == (False,)


def test_products_are_halved_for_coarse_bits_where_the_hardware_multiplies_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bits = [8, 4, 2, 5]
    monkeypatch.setattr(compilation, "has_fast_bfloat16", lambda _: True)
    assert in_half(bits, "auto", CPU) == (False, True, True, False)
    assert in_half(bits, "float32", CPU) == (False,) * 4
    assert in_half(bits, "bfloat16", CPU) == (True,) * 4
    monkeypatch.setattr(compilation, "has_fast_bfloat16", lambda _: False)
    assert in_half(bits, "auto", CPU) == (False,) * 4


def test_a_decision_is_kept_as_it_was_made() -> None:
    made = Execution((True, False, True), (False, True, True))
    assert Execution.from_state(made.state()) == made


def test_sizes_are_those_of_one_image(
    teacher: Teacher, student_of: Callable[..., Student], images: ImageSet
) -> None:
    student = student_of(teacher)
    blocks = find_blocks(student)
    for by_layer in (False, True):
        units = [units_of(student, block, by_layer=by_layer) for block in blocks]
        sizes = measured_sizes(student, blocks, units)
        x = images.images[:1]
        for block, size in zip(blocks, sizes, strict=True):
            assert size.input == tuple(x.shape[1:])
            x = block(x)
            assert size.output == tuple(x.shape[1:])
        # The first residual block reads 6 channels of 8 x 10, its second layer 7, which the first
        # layer's output is quantized for.
        found = [(unit.input, unit.output, unit.activations) for unit in sizes[1].units]
        if by_layer:
            assert found == [((6, 8, 10), (7, 8, 10), 480 + 560), ((7, 8, 10), (6, 8, 10), 560)]
        else:
            assert found == [((6, 8, 10), (6, 8, 10), 480 + 560)]

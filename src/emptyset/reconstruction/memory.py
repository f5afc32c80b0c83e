"""How large the caches of a student's blocks are, and how much memory is left for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.graph.blocks import Block
from emptyset.graph.memory import bytes_kept
from emptyset.graph.room import room_left
from emptyset.graph.student import Student
from emptyset.reconstruction.config import Course
from emptyset.reconstruction.units import Unit

# How often a step holds what a backward keeps (gradients, layouts, precisions); seen with ResNet-18
# and ResNet-50 at 224 x 224.
_COPIES = 3
# Originals, V, Adam's averages, codes.
_COPIES_OF_WEIGHTS = 6


@dataclass(frozen=True)
class UnitSizes:
    """Shapes of one image, without the axis of images.

    Attributes:
        input: What the unit reads.
        output: What it gives.
        activations: Elements of what its activation quantizers read.
        kept: Bytes that a step keeps for its backward.
        whole: Whether the unit is its block; else it is a layer of it.
        reads_input: Whether it reads what its block reads.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    activations: int
    kept: int
    whole: bool
    reads_input: bool


@dataclass(frozen=True)
class BlockSizes:
    """Of a block and of its units.

    Attributes:
        input: What the block reads, for one image.
        output: What it gives.
        kept: Bytes that a backward through all of it keeps.
        units: In order.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    kept: int
    units: tuple[UnitSizes, ...]


def measured_sizes(
    student: Student, blocks: Sequence[Block], units: Sequence[Sequence[Unit]]
) -> list[BlockSizes]:
    """Sizes found by sending one image through the float network, block by block."""
    read: list[int] = []
    hooks = [
        quantizer.register_forward_hook(lambda _m, inputs, _out: read.append(inputs[0].numel()))
        for quantizer in student.quantizers.values()
        if quantizer.axis is None
    ]
    found = []
    try:
        with torch.no_grad(), student.float_mode():
            x = student.teacher.example(1)
            for block, inside in zip(blocks, units, strict=True):
                sizes = tuple(_unit_sizes(unit, block, x, read) for unit in inside)
                out, kept = block(x), bytes_kept(block.module.graph)
                found.append(BlockSizes(tuple(x.shape[1:]), tuple(out.shape[1:]), kept, sizes))
                x = out
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _unit_sizes(unit: Unit, block: Block, x: Tensor, read: list[int]) -> UnitSizes:
    x = x if unit.lead is None else unit.lead(x)
    read.clear()
    out = unit.body(x)
    kept = bytes_kept(unit.body.graph)
    shapes = tuple(x.shape[1:]), tuple(out.shape[1:])
    return UnitSizes(*shapes, sum(read), kept, unit.body is block.module, unit.lead is None)


def reads_float(course: Course, block: BlockSizes) -> bool:
    """Whether a block's float inputs are needed after its targets were computed."""
    return course.inputs != "quantized" or not all(unit.whole for unit in block.units)


def most_held(course: Course, sizes: Sequence[BlockSizes]) -> tuple[int, int]:
    """Most bytes of one image in all inputs and targets at one moment, float32, and the block.

    The moments are those of the walk in ``chain``, in its order.

    Args:
        course: What is learnt, from what.
        sizes: Of all blocks.
    """
    moments: list[tuple[int, int]] = []
    for number, block in enumerate(sizes):
        first, last = number == 0, number + 1 == len(sizes)
        # Up to the first block, and where only float inputs are read, both are one.
        apart = course.inputs != "float" and not first
        own, target = row_bytes(block.input), row_bytes(block.output)
        floats = own if apart else 0
        moments.append((own + floats + target, number))
        if not reads_float(course, block):
            floats = 0
        most = max(_unit_bytes(course, unit) for unit in block.units)
        moments.append((own + floats + target + most, number))
        if course.inputs != "float" and not last:
            moments.append((own + target + row_bytes(block.output), number))
    return max(moments, key=lambda moment: moment[0])


def _unit_bytes(course: Course, unit: UnitSizes) -> int:
    """Of one image, in what a unit needs beside the rows of its block."""
    if unit.whole:
        return row_bytes(unit.output) if course.weighting != "none" else 0
    copies = 0 if unit.reads_input else 2 if course.inputs == "mixed" else 1
    return row_bytes(unit.output) + copies * row_bytes(unit.input)


def row_bytes(*shapes: tuple[int, ...]) -> int:
    """Bytes of one image in all of these, float32."""
    return sum(4 * math.prod(shape) for shape in shapes)


def cache_limit(
    student: Student,
    sizes: Sequence[BlockSizes],
    course: Course,
    *,
    memory: float,
    batch: int,
    images: int,
) -> int:
    """Bytes that caches in memory may take: what everything else leaves, at least 0.

    Args:
        student: Its weights are held several times.
        sizes: Of all blocks.
        course: What is learnt, by which rule.
        memory: For all of the process [GB].
        batch: Images in one step.
        images: Bytes of the images that the caller holds.
    """
    weights = sum(p.numel() * p.element_size() for p in student.program.parameters())
    step = max(unit.kept for block in sizes for unit in block.units)
    if course.weighting != "none":
        # Sensitivities go back through everything behind a block.
        step = max(step, sum(block.kept for block in sizes[1:]))
    working = _COPIES_OF_WEIGHTS * weights + _COPIES * batch * step
    return room_left(student.device, memory, images=images, working=working)

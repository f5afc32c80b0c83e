"""How large the caches of a student's blocks are, and how much memory is left for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.graph.blocks import Block
from emptyset.graph.memory import bytes_kept
from emptyset.graph.student import Student
from emptyset.reconstruction.caches import BYTES_PER_GIGABYTE
from emptyset.reconstruction.units import Unit

# Seen with ResNet-18 and ResNet-50 at 224 x 224: Python, torch and a compiler's memory; and how
# often a step holds what a backward keeps (gradients, layouts, precisions).
_PROCESS_BYTES = 1 << 30
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
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    activations: int
    kept: int


@dataclass(frozen=True)
class BlockSizes:
    """Of a block and of its units.

    Attributes:
        input: What the block reads, for one image.
        output: What it gives.
        units: In order.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
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
                sizes = tuple(_unit_sizes(unit, x, read) for unit in inside)
                out = block(x)
                found.append(BlockSizes(tuple(x.shape[1:]), tuple(out.shape[1:]), sizes))
                x = out
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _unit_sizes(unit: Unit, x: Tensor, read: list[int]) -> UnitSizes:
    x = x if unit.lead is None else unit.lead(x)
    read.clear()
    out = unit.body(x)
    kept = bytes_kept(unit.body.graph)
    return UnitSizes(tuple(x.shape[1:]), tuple(out.shape[1:]), sum(read), kept)


def row_bytes(*shapes: tuple[int, ...]) -> int:
    """Bytes of one image in all of these, float32."""
    return sum(4 * math.prod(shape) for shape in shapes)


def cache_limit(
    student: Student, sizes: Sequence[BlockSizes], *, memory: float, batch: int, images: int
) -> int:
    """Bytes that caches in memory may take: what the rest of the process leaves, at least 0.

    Args:
        student: Its weights are held several times.
        sizes: Of all blocks.
        memory: For all of the process [GB].
        batch: Images in one step.
        images: Bytes of the images that the caller holds.
    """
    weights = sum(p.numel() * p.element_size() for p in student.program.parameters())
    step = max(unit.kept for block in sizes for unit in block.units)
    rest = _PROCESS_BYTES + images + _COPIES_OF_WEIGHTS * weights + _COPIES * batch * step
    return max(0, int(memory * BYTES_PER_GIGABYTE) - rest)

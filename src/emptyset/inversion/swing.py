"""Swing convolution: what a strided convolution sees is shifted by up to one pixel, at random.

A strided convolution looks at some pixels more often than at others, and images that are optimised
through it show its grid. Shifting its input in every step lets each pixel take each place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def strided_convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """Every Conv2d with a stride other than 1, in module order."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d) and tuple(m.stride) != (1, 1)]


def draw_offsets(count: int, generator: torch.Generator) -> Tensor:
    """Offsets of ``count`` convolutions, ``(count, 2)`` in 0..2: rows and columns."""
    return torch.randint(3, (count, 2), generator=generator)


def shifted(x_NCHW: Tensor, offset: Tensor) -> Tensor:
    """Reflect-pad by one pixel and crop to the old size at ``offset``.

    Args:
        x_NCHW: ``(N, C, H, W)``; below 2 × 2 pixels nothing can be reflected, and it stays.
        offset: ``(2,)`` in 0..2, first row and first column of the crop; 1, 1 changes nothing.

    Source:
        Genie, Jeon et al. 2023, arXiv:2212.04780, section 3.1; one draw for the whole batch as in
        its released code.
    """
    height, width = x_NCHW.shape[2:]
    if min(height, width) < 2:
        return x_NCHW
    # Indices, not slices: a slice would wait for the device to tell where it starts.
    rows = _reflected(height, offset[0])
    columns = _reflected(width, offset[1])
    # Channels last, as the teacher's copy is: whole rows and whole pixels are moved.
    x_NHWC = x_NCHW.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns)
    return x_NHWC.permute(0, 3, 1, 2)


def _reflected(size: int, offset: Tensor) -> Tensor:
    """Which pixel lies at each place of the crop, ``(size,)``; the border is a mirror."""
    last = size - 1
    places = (torch.arange(size, device=offset.device) + offset - 1).abs()
    return last - (last - places).abs()


@contextmanager
def swung(module: nn.Module) -> Iterator[list[Tensor]]:
    """Shift the inputs of all strided convolutions for as long as the block lasts.

    Yields:
        A list whose only item is to be set to the offsets ``(convolutions, 2)`` before each
        forward; while it is empty, nothing is shifted.
    """
    offsets: list[Tensor] = []

    def shifter(position: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def shift(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not offsets:
                return None
            return (shifted(arguments[0], offsets[0][position]), *arguments[1:])

        return shift

    handles = [
        conv.register_forward_pre_hook(shifter(position))
        for position, conv in enumerate(strided_convolutions(module))
    ]
    try:
        yield offsets
    finally:
        for handle in handles:
            handle.remove()

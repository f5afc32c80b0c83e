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
    # Channels last, as the teacher's copy is: whole rows and whole pixels are moved.
    x_NHWC = _moved(_moved(x_NCHW.permute(0, 2, 3, 1), offset[0], 1), offset[1], 2)
    return x_NHWC.permute(0, 3, 1, 2)


def _moved(x: Tensor, offset: Tensor, dim: int) -> Tensor:
    """``shifted`` along one dimension; typed here, as ``apply`` is not."""
    moved: Tensor = _Moved.apply(x, offset, dim)  # type: ignore[no-untyped-call]
    return moved


class _Moved(torch.autograd.Function):
    """The crop of a reflected line; its gradient is gathered too, and so fuses when compiled.

    Torch's own gradient of a selection adds element by element, on one thread.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(offset)
        ctx.dim = dim
        # Indices, not slices: a slice would wait for the device to tell where it starts.
        places = torch.arange(x.shape[dim], device=offset.device) + offset - 1
        last = x.shape[dim] - 1
        return x.index_select(dim, last - (last - places.abs()).abs())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (offset,), dim = ctx.saved_tensors, ctx.dim
        size = gradients[0].shape[dim]
        pixels = torch.arange(size, device=offset.device)
        # A pixel is seen at its own place, unless that lies outside the crop ...
        own = pixels - offset + 1
        seen = (own >= 0) & (own < size)
        # ... and the second from a border also beyond it, at the end of the crop.
        last = size - 1
        mirrored = torch.where(offset == 2, pixels == last - 1, (offset == 0) & (pixels == 1))
        end = torch.where(offset == 2, last, 0).expand(size)
        shape = [size if d == dim else 1 for d in range(gradients[0].dim())]

        def part(where: Tensor, counts: Tensor) -> Tensor:
            share = counts.to(gradients[0].dtype).view(shape)
            return gradients[0].index_select(dim, where.clamp(0, last)) * share

        return part(own, seen) + part(end, mirrored), None, None


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

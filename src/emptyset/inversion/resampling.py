"""Crops, boxes, rolls and flips, each image its own, drawn on the host and done at once."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# As torchvision's RandomResizedCrop: aspect ratios, and how often a crop that does not fit is
# drawn anew. Then the last one is cut to fit (there the whole image is taken).
_ASPECTS = (3 / 4, 4 / 3)
_TRIES = 10


def draw_crops(
    count: int,
    height: int,
    width: int,
    *,
    smallest: float,
    probability: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Where each image is looked at: a random crop and flip, or (one coin for all) the whole.

    Args:
        count: N.
        height: H [pixels].
        width: W [pixels].
        smallest: Least share of the area that a crop has, above 0 up to 1.
        probability: Of cropping at all in this step.
        generator: Source of everything random.

    Returns:
        ``crop_rows`` ``(N, H)`` and ``crop_columns`` ``(N, W)``: positions to sample [pixels].
    """
    cropped = torch.rand((), generator=generator) < probability
    tops, lefts, heights, widths = _random_boxes(count, height, width, (smallest, 1.0), generator)
    flipped = torch.rand(count, generator=generator) < 0.5
    if not cropped:
        rows, columns = torch.arange(height).float(), torch.arange(width).float()
        return {
            "crop_rows": rows.expand(count, -1).clone(),
            "crop_columns": columns.expand(count, -1).clone(),
        }
    columns = _positions(lefts, widths, width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    return {"crop_rows": _positions(tops, heights, height), "crop_columns": columns}


def sampled(images_NCHW: Tensor, rows_NH: Tensor, columns_NW: Tensor) -> Tensor:
    """Bilinear samples of each image at its own rows and columns.

        out = R · x · Cᵀ,   R_ih = max(0, 1 − |rows_i − h|),   C likewise

    R and C have two entries per row. On a CPU each image is mixed from pairs of its rows, then
    from pairs of its columns; elsewhere two products of small dense matrices are as fast as
    ``grid_sample`` and, unlike its gradient on CUDA, the same every time.

    Args:
        images_NCHW: ``(N, C, H, W)``.
        rows_NH: Positions ``(N, H')`` in 0..H − 1 [pixels, 0 is the centre of the first].
        columns_NW: Positions ``(N, W')`` in 0..W − 1 [pixels].

    Returns:
        ``(N, C, H', W')``.

    Gradient:
        To ``images_NCHW`` only.
    """
    if images_NCHW.device.type == "cpu":
        return _sampled_by_pairs(images_NCHW, rows_NH, columns_NW)
    return _sampled_by_products(images_NCHW, rows_NH, columns_NW)


def draw_pasted_boxes(
    count: int,
    height: int,
    width: int,
    *,
    areas: tuple[float, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Where a whole image is pasted, made smaller, into another.

    Args:
        count: N.
        height: H [pixels].
        width: W [pixels].
        areas: Least and greatest share of the area that a box has.
        generator: Source of everything random.

    Returns:
        ``paste_rows`` ``(N, H)`` and ``paste_columns`` ``(N, W)``: positions to sample in the
        pasted image; ``paste_mask`` ``(N, 1, H, W)``: 1 inside the box.
    """
    tops, lefts, heights, widths = _random_boxes(count, height, width, areas, generator)
    rows, inside_rows = _pasted(tops, heights, height)
    columns, inside_columns = _pasted(lefts, widths, width)
    mask = inside_rows[:, None, :, None] * inside_columns[:, None, None, :]
    return {"paste_rows": rows, "paste_columns": columns, "paste_mask": mask}


def draw_roll(
    height: int, width: int, *, most: int, flip: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """One cyclic shift, and perhaps a flip, for all images.

    Args:
        height: H [pixels].
        width: W [pixels].
        most: Greatest shift in both directions [pixels].
        flip: Probability of mirroring left and right.
        generator: Source of everything random.

    Returns:
        ``roll_rows`` ``(H,)`` and ``roll_columns`` ``(W,)``: which row and column goes where.
    """
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    columns = (torch.arange(width) - right) % width
    if torch.rand((), generator=generator) < flip:
        columns = columns.flip(0)
    return {"roll_rows": (torch.arange(height) - down) % height, "roll_columns": columns}


def rolled(images_NCHW: Tensor, rows_H: Tensor, columns_W: Tensor) -> Tensor:
    """The images with rows and columns in another order; no step waits for the device."""
    return images_NCHW.index_select(2, rows_H).index_select(3, columns_W)


def _random_boxes(
    count: int, height: int, width: int, areas: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tops, lefts, heights and widths ``(N,)`` [whole pixels]: RandomResizedCrop's rule."""
    shape = (count, _TRIES)
    low, high = areas
    area = (low + (high - low) * torch.rand(shape, generator=generator)) * height * width
    spread = torch.rand(shape, generator=generator)
    aspect = torch.exp(math.log(_ASPECTS[0]) * (1 - spread) + math.log(_ASPECTS[1]) * spread)
    widths = (area * aspect).sqrt().round().clamp(min=1)
    heights = (area / aspect).sqrt().round().clamp(min=1)
    fits = (widths <= width) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    some = fits.any(dim=1)
    # Where none fits, the largest that does, as near as can be to what was drawn last.
    chosen_h = torch.where(some, heights.gather(1, first)[:, 0], heights[:, -1].clamp(max=height))
    chosen_w = torch.where(some, widths.gather(1, first)[:, 0], widths[:, -1].clamp(max=width))
    tops = (torch.rand(count, generator=generator) * (height - chosen_h + 1)).floor()
    lefts = (torch.rand(count, generator=generator) * (width - chosen_w + 1)).floor()
    return tops, lefts, chosen_h, chosen_w


def _sampled_by_products(images_NCHW: Tensor, rows_NH: Tensor, columns_NW: Tensor) -> Tensor:
    """``sampled``, with R and C as dense matrices."""
    count, channels, height, width = images_NCHW.shape
    from_rows = _weights(rows_NH, height).to(images_NCHW.dtype)
    from_columns = _weights(columns_NW, width).to(images_NCHW.dtype)
    # Channels last, so that the first product reads the images as they lie in memory.
    wide = images_NCHW.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    wide = torch.bmm(from_rows, wide).view(count, -1, width, channels)
    tall = torch.bmm(from_columns, wide.transpose(1, 2).reshape(count, width, -1))
    return tall.view(count, from_columns.shape[1], from_rows.shape[1], channels).permute(0, 3, 2, 1)


def _sampled_by_pairs(images_NCHW: Tensor, rows_NH: Tensor, columns_NW: Tensor) -> Tensor:
    """``sampled``, with only the entries of R and C that are not zero; returns channels last."""
    count, channels, height, width = images_NCHW.shape
    new_height, new_width = rows_NH.shape[1], columns_NW.shape[1]
    # What is mixed lies in one piece: (N·H, W·C) for the rows, (N·W, C·H') for the columns.
    lines = images_NCHW.permute(0, 2, 3, 1).reshape(count * height, width * channels)
    tall = _mixed(lines, *_pairs(rows_NH, height, lines.dtype))
    lines = _turned(tall.view(count, new_height, -1)).reshape(count * width, channels * new_height)
    wide = _mixed(lines, *_pairs(columns_NW, width, lines.dtype))
    wide = _turned(wide.view(count, -1, new_height))
    return wide.reshape(count, new_height, new_width, channels).permute(0, 3, 1, 2)


def _turned(matrices_NAB: Tensor) -> Tensor:
    """``(N, B, A)``: matrices transposed and copied; typed here, as ``apply`` is not."""
    turned: Tensor = _Turned.apply(matrices_NAB)  # type: ignore[no-untyped-call]
    return turned


class _Turned(torch.autograd.Function):
    """``transpose(1, 2).contiguous()``, four times as fast on a CPU.

    Shuffling channels transposes the channels (A groups of B) of every pixel; torch does that with
    vector instructions where the channels come last. Each matrix is one pixel here.
    """

    @staticmethod
    def forward(_: Any, matrices: Tensor) -> Tensor:
        return _shuffled(matrices)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _shuffled(gradients[0])


def _shuffled(matrices: Tensor) -> Tensor:
    count, first, second = matrices.shape
    pixels = matrices.reshape(count, 1, 1, first * second).permute(0, 3, 1, 2)
    return torch.channel_shuffle(pixels, first).permute(0, 2, 3, 1).reshape(count, second, first)


def _pairs(positions: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The two lines around each position, counted over all images, and the share of each.

    Args:
        positions: ``(N, P)`` in 0..size − 1.
        size: Lines per image.
        dtype: Of the shares.

    Returns:
        ``(N·P, 2)`` line numbers in 0..N·size − 1 and ``(N·P, 2)`` shares, adding up to 1.
    """
    low = positions.floor().clamp(0, size - 1)
    share = (positions - low).to(dtype)
    low = low.long()
    # Beyond the last line there is none; its share is 0 then.
    high = (low + 1).clamp(max=size - 1)
    first = torch.arange(len(positions))[:, None] * size
    lines = torch.stack([low + first, high + first], dim=2)
    return lines.view(-1, 2), torch.stack([1 - share, share], dim=2).view(-1, 2)


def _mixed(lines: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
    """Sums of two lines each, ``(M, width)``; typed here, as ``apply`` is not."""
    mixed: Tensor = _Mixed.apply(lines, numbers, shares)  # type: ignore[no-untyped-call]
    return mixed


class _Mixed(torch.autograd.Function):
    """A product with a sparse matrix of two entries per row; so is its gradient, transposed.

        out_m = Σ_k shares_mk · lines[numbers_mk]

    Both run as bags of an embedding: the kernel works on whole lines, seven times as fast as a
    dense product of 32 × 32 matrices. Torch's own gradient of it takes five times as long.
    """

    @staticmethod
    def forward(ctx: Any, lines: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(numbers, shares)
        ctx.lines = len(lines)
        return embedding_bag(numbers, lines, mode="sum", per_sample_weights=shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        numbers, shares = ctx.saved_tensors
        # A stable order adds the same numbers in the same order every time.
        by_line, order = numbers.view(-1).sort(stable=True)
        used = torch.zeros(ctx.lines, dtype=torch.long).scatter_add_(
            0, by_line, torch.ones_like(by_line)
        )
        to_lines = embedding_bag(
            order // 2,
            gradients[0].contiguous(),
            used.cumsum(0) - used,
            mode="sum",
            per_sample_weights=shares.view(-1)[order],
        )
        return to_lines, None, None


def _weights(positions: Tensor, size: int) -> Tensor:
    """Share ``(N, P, size)`` that each pixel has in the sample at each position."""
    pixels = torch.arange(size, device=positions.device, dtype=positions.dtype)
    return (1 - (positions[:, :, None] - pixels).abs()).clamp(min=0.0)


def _positions(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Positions ``(N, size)`` of a crop that is resized: bilinear, without looking outside it."""
    starts, lengths = starts[:, None], lengths[:, None]
    inside = (torch.arange(size) + 0.5) * lengths / size - 0.5
    return starts + inside.clamp(min=0.0).minimum(lengths - 1)


def _pasted(starts: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Positions ``(N, size)`` in the pasted image, and 1 where it is pasted."""
    starts, lengths = starts[:, None], lengths[:, None]
    offset = torch.arange(size) - starts
    positions = ((offset + 0.5) * size / lengths - 0.5).clamp(0.0, size - 1)
    return positions, ((offset >= 0) & (offset < lengths)).float()

"""Shifts and mirrors images, each its own way, as classifiers are trained."""

import torch
from torch import Tensor


def shifted(images_NCHW: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Every image moved by its own whole number of pixels; 0 (the mean colour) moves in.

    Args:
        images_NCHW: ``(N, C, H, W)`` [teacher's normalised units].
        most: Greatest shift in each direction [pixels].
        generator: Source of everything random, on the CPU.

    Returns:
        Shaped as the images. The same as a crop out of the padded image.
    """
    count, _, height, width = images_NCHW.shape
    moves = torch.randint(-most, most + 1, (2, count), generator=generator)
    moves = moves.to(images_NCHW.device) + most
    rows = moves[0][:, None] + torch.arange(height, device=images_NCHW.device)
    columns = moves[1][:, None] + torch.arange(width, device=images_NCHW.device)
    padded = torch.nn.functional.pad(images_NCHW, (most,) * 4)
    which = torch.arange(count, device=images_NCHW.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mirrored(images_NCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in some images.

    Args:
        images_NCHW: ``(N, C, H, W)``.
        probability: Of each image to be mirrored.
        generator: Source of everything random, on the CPU.
    """
    chosen = torch.rand(len(images_NCHW), generator=generator) < probability
    chosen = chosen.to(images_NCHW.device)[:, None, None, None]
    return torch.where(chosen, images_NCHW.flip(3), images_NCHW)

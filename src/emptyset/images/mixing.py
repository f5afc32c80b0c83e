"""Mixes each image of a batch with another one: Mixup and CutMix."""

import torch
from torch import Tensor

from emptyset.images.sending import sent

MIXINGS = ("none", "mixup", "cutmix", "mixup_images", "cutmix_images")
# Behind a method: labels are not mixed, so mixed images have none.
IMAGES_ONLY = "_images"


def mixed(
    images_NCHW: Tensor, method: str, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Every image mixed with a partner of the same batch, by a share of its own.

    Shares are uniform in 0..1, which is Beta(1, 1).

    Args:
        images_NCHW: ``(N, C, H, W)``.
        method: ``mixup``: the weighted mean of both; ``cutmix``: a box of the partner, somewhere in
            the image, that covers what the share leaves.
        generator: Source of everything random, on the CPU.

    Returns:
        Images ``(N, C, H, W)``; partners ``(N,)``, indices into the batch; the share ``(N,)`` of
        the image itself in what it became, in 0..1. A box is cut off at the image's edges, and
        its share counts what is left.

    Source:
        mixup, Zhang et al. 2018, arXiv:1710.09412; CutMix, Yun et al. 2019, arXiv:1905.04899,
        section 3.1. There one share serves the whole batch.
    """
    if method not in ("mixup", "cutmix"):
        raise ValueError(f"method must be mixup or cutmix. Got '{method}'.")
    count, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    order = torch.randperm(count, generator=generator)
    drawn = torch.rand(count, generator=generator)
    partners = sent(order, device)
    if method == "mixup":
        shares = sent(drawn, device)
        own = shares.view(-1, 1, 1, 1)
        return own * images_NCHW + (1 - own) * images_NCHW[partners], partners, shares
    rows = sent(_inside(height, drawn, generator), device)
    columns = sent(_inside(width, drawn, generator), device)
    box = (rows[:, :, None] & columns[:, None, :])[:, None]
    pasted = torch.where(box, images_NCHW[partners], images_NCHW)
    return pasted, partners, 1 - box.float().mean((1, 2, 3))


def _inside(length: int, shares: Tensor, generator: torch.Generator) -> Tensor:
    """``(N, length)``: which rows (or columns) lie in the box, whose area is ``1 - share``."""
    half = 0.5 * length * (1 - shares).sqrt()
    centre = length * torch.rand(len(shares), generator=generator)
    position = torch.arange(length) + 0.5
    return (position - centre[:, None]).abs() < half[:, None]

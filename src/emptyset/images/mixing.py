"""Mixes each image of a batch with another one: Mixup and CutMix."""

import torch
from torch import Tensor

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
    count, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    partners = torch.randperm(count, generator=generator)
    shares = torch.rand(count, generator=generator)
    if method == "mixup":
        own = shares.view(-1, 1, 1, 1).to(device)
        blended = own * images_NCHW + (1 - own) * images_NCHW[partners.to(device)]
        return blended, partners.to(device), shares.to(device)
    if method != "cutmix":
        raise ValueError(f"method must be mixup or cutmix. Got '{method}'.")
    rows = _inside(height, shares, generator)
    columns = _inside(width, shares, generator)
    box = (rows[:, :, None] & columns[:, None, :])[:, None].to(device)
    pasted = torch.where(box, images_NCHW[partners.to(device)], images_NCHW)
    return pasted, partners.to(device), 1 - box.float().mean((1, 2, 3))


def _inside(length: int, shares: Tensor, generator: torch.Generator) -> Tensor:
    """``(N, length)``: which rows (or columns) lie in the box, whose area is ``1 - share``."""
    half = 0.5 * length * (1 - shares).sqrt()
    centre = length * torch.rand(len(shares), generator=generator)
    position = torch.arange(length) + 0.5
    return (position - centre[:, None]).abs() < half[:, None]

"""Images as small 8-bit pixels: what is looked at, and what can be kept of many."""

import torch
from torch import Tensor, nn

from emptyset.images.input_spec import InputSpec


def small_pixels(images_NCHW: Tensor, spec: InputSpec, largest: int) -> Tensor:
    """Images as a picture file of at most ``largest`` pixels a side would hold them.

    Args:
        images_NCHW: ``(N, C, H, W)`` [teacher's normalised units], at least one.
        spec: Turns images back into pixels, clipped from black to white.
        largest: Of height and width; larger images are averaged over areas [pixels].

    Returns:
        ``(N, C, h, w)`` uint8.
    """
    pixels = spec.pixels(images_NCHW.float())
    height, width = pixels.shape[2:]
    if max(height, width) > largest:
        shrink = largest / max(height, width)
        smaller = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        pixels = nn.functional.interpolate(pixels, smaller, mode="area")
    return (pixels * 255).round().to(torch.uint8)

"""A run without any image: nothing to fit to, and probes that the certificate alone is shown.

The certificate compares two programs code by code; any input serves, and Gaussian pixels reach many
codes. Nothing else is done with them: they say nothing of accuracy, and no range is set on them.
"""

from collections.abc import Iterator

import torch

from emptyset.images.image_set import Batch, ImageSet
from emptyset.images.input_spec import InputSpec

PROBES = "Gaussian probes, shown to the certificate alone; no image was used"
# Pixels of a probe, before they are clipped to 0..1.
MEAN, DEVIATION = 0.5, 0.25


class NoImages:
    """An empty stream, for refiners that look at no image."""

    def __len__(self) -> int:
        return 0

    def batches(self, size: int) -> Iterator[Batch]:
        """None at all."""
        return iter(())


NO_IMAGES = NoImages()


def gaussian_probes(spec: InputSpec, count: int, *, seed: int) -> ImageSet:
    """Images of independent pixels, ``normal(0.5, 0.25)`` clipped to 0..1, then normalised.

    Args:
        spec: Size and normalisation.
        count: Number of images.
        seed: Of the pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = MEAN + DEVIATION * torch.randn(count, *spec.shape, generator=generator)
    entry = {"stage": "probes", "method": "gaussian", "seed": seed, "count": count}
    return ImageSet(spec.normalise(pixels.clamp(0, 1)), history=(entry,))

"""IntraQ's local object reinforcement: the teacher is shown a random crop of every image."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.inversion.resampling import draw_crops, sampled


@dataclass(frozen=True)
class LocalReinforcement:
    """In a step, either every image is cropped, resized and perhaps mirrored, or none is.

    All images are resampled at once, each with its own crop; the released code loops over them.

    Source: IntraQ, Zhong et al. 2022, arXiv:2111.09136, section 3.3.1; one coin per batch as in its
        released code, whose crops are torchvision's RandomResizedCrop.

    Attributes:
        shape: ``(C, H, W)`` of an image.
        smallest: η, the least share of the area that a crop has.
        probability: Of cropping in a step.
    """

    shape: tuple[int, int, int]
    smallest: float = 0.5
    probability: float = 0.5

    def draw(self, step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """Where each image is looked at in this step."""
        return draw_crops(
            count,
            *self.shape[1:],
            smallest=self.smallest,
            probability=self.probability,
            generator=generator,
        )

    def augment(self, images_NCHW: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """What is seen there, in the images' own size."""
        return sampled(images_NCHW, drawn["crop_rows"], drawn["crop_columns"])

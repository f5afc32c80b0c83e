"""A generator: what its latent is made of, and the network that turns latents into images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from emptyset.generators.autorecon_cells import AutoReConBackbone
from emptyset.generators.class_mixture import ClassMixture, LabelSampler
from emptyset.generators.conditions import Condition, Drawn
from emptyset.generators.upsampling_backbone import UpsamplingBackbone

SUPERPOSED_NORMS = ("sum", "mean")

Backbone = UpsamplingBackbone | AutoReConBackbone


class Generator(nn.Module):
    """Labels and noise to images.

    Attributes:
        classes: C, number of the teacher's classes.
    """

    def __init__(
        self,
        condition: Condition,
        backbone: Backbone,
        classes: int,
        *,
        superposed_norm: str = "sum",
    ) -> None:
        """Put the parts together.

        Args:
            condition: Makes the latents.
            backbone: Makes the images.
            classes: C.
            superposed_norm: Of class-conditional BatchNorm over superposed classes: ``sum`` of the
                shares, or their ``mean`` over the K slots, as Qimera's released code has it. (The
                next BatchNorm's ε of 0.8 does not undo that: with K = 100 images start at a
                standard deviation of 3e-5.)
        """
        super().__init__()
        self.condition = cast(nn.Module, condition)
        self.backbone = backbone
        self.classes = classes
        self._mean = superposed_norm == "mean"

    def draw(self, generator: torch.Generator, mixture: ClassMixture) -> Drawn:
        """Everything random of one batch, on the CPU."""
        soft = mixture.soft(self.classes)
        condition = cast(Condition, self.condition)
        drawn = condition.draw(generator, mixture, soft)
        if self.backbone.conditional:
            slots = mixture.classes.shape[1]
            drawn["weights"] = soft / slots if self._mean else soft
        return drawn

    def forward(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """``(N, C, H, W)`` images [standardised pixel units] of what was drawn."""
        images: Tensor = self.backbone(self.condition(drawn), drawn.get("weights"))
        return images

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Inside, forwards leave the running statistics of BatchNorm as they are."""
        before = {name: value.clone() for name, value in self.named_buffers()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.named_buffers():
                    value.copy_(before[name])


def labels_in_batches(
    sampler: LabelSampler, count: int, size: int, generator: torch.Generator
) -> Iterator[ClassMixture]:
    """Labels of ``count`` images in batches of ``size``, the superposed batches among them spread.

    So many of the batches are superposed as the sampler's share says, rounded; the last batch is
    full too, whatever is needed of it.
    """
    batches = -(-count // size)
    superposed = round(sampler.superposed_share * batches)
    for number in range(batches):
        # Bresenham's line: `superposed` of `batches`, as evenly as whole numbers can be.
        mixed = (number + 1) * superposed // batches > number * superposed // batches
        yield sampler.draw(generator, size, superposed=mixed)

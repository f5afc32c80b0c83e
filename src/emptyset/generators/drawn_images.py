"""A generator's images as a set that is never whole in memory: drawn while they are read."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from emptyset.errors import ImagesError
from emptyset.generators.generator_source import GeneratorSource
from emptyset.images.image_set import Batch


@dataclass(frozen=True)
class DrawnImages:
    """The images of ``source.draws(count, seed=seed)``, the same in every reading.

    Attributes:
        source: A generator; where it is trained on, the images change with it.
        count: At least 2.
        seed: Of labels and noise.
    """

    source: GeneratorSource
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them, in order, at most ``size`` at a time.

        Raises:
            ImagesError: If the count is below 2, or an image is not finite.
        """
        for drawn in self.source.draws(self.count, seed=self.seed):
            if not bool(torch.isfinite(drawn.images).all()):
                raise ImagesError(
                    f"The generator of {self.source.method.name} makes images of NaN or infinity: "
                    "its training diverged. Train it again with a smaller learning_rate."
                )
            for start in range(0, len(drawn.images), size):
                part = slice(start, start + size)
                targets = None if drawn.targets is None else drawn.targets[part]
                yield Batch(drawn.images[part], targets)

"""How a count of images is made in batches of one size."""

from dataclasses import dataclass

import torch

from emptyset.errors import ImagesError


@dataclass(frozen=True)
class BatchPlan:
    """Equal batches that give exactly ``count`` images.

    All batches have one size, so that nothing is compiled twice and batch statistics mean the
    same in each; the last ones give up what is too much (at most one image each).

    Attributes:
        count: Images asked for.
        batches: Number of batches.
        size: Images optimised together.
        seeds: One per batch: a batch does not depend on those before it.
    """

    count: int
    batches: int
    size: int
    seeds: tuple[int, ...]

    def kept_of(self, batch: int) -> int:
        """How many images of this batch belong to the result."""
        return self.count // self.batches + (1 if batch < self.count % self.batches else 0)


def plan_batches(count: int, largest: int, *, seed: int) -> BatchPlan:
    """The fewest equal batches of at most ``largest`` images.

    A single image is made together with a second one, where ``largest`` allows it: the statistics
    of a batch say nothing of one image.

    Args:
        count: Images asked for, at least 1.
        largest: Most images in one batch.
        seed: Gives every batch its own.
    """
    batches = -(-count // largest)
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (batches,), generator=generator).tolist()
    size = max(-(-count // batches), min(2, largest))
    return BatchPlan(count, batches, size, tuple(seeds))


def require_count(method: str, count: int, least: int = 2) -> None:
    """Refuse a count that no image set can be made of.

    Raises:
        ImagesError: If ``count`` is below ``least``.
    """
    if count < least:
        raise ImagesError(
            f"{method}: at least {least} images are needed, {count} asked for. Calibration looks "
            "at the spread over images; ask for 32 or more."
        )

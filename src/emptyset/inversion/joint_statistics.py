"""BatchNorm statistics of a whole set of images that is optimised batch after batch.

Every batch leaves the moments that it last caused. Another one adds the mean of those to its own
before they are compared with what the teacher stored: then the set as a whole is to look like the
data, and no batch has to by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emptyset.losses.layer_statistics import Elsewhere, LayerStatistics

Moments = dict[str, Tensor]
"""Per teacher ``(2, ΣC)``: means over a batch of shift and square, all layers one after another."""

TEACHER = "teacher"
"""The key of the teacher itself; further ones are ``other.NUMBER``."""

_VALUES, _COUNT = "elsewhere.{}", "elsewhere.{}.images"


def batch_moments(layers: Sequence[LayerStatistics]) -> Tensor:
    """What a batch leaves for the others, ``(2, ΣC)``, without gradients.

    Args:
        layers: Statistics of the batch.
    """
    rows = ([x.detach().mean(dim=0) for x in (one.shift, one.square)] for one in layers)
    return torch.stack([torch.cat(parts) for parts in zip(*rows, strict=True)])


def joined_with(
    layers: Sequence[LayerStatistics], drawn: Mapping[str, Tensor], teacher: str
) -> tuple[LayerStatistics, ...]:
    """The same layers as parts of the whole set.

    Args:
        layers: Statistics of the batch, in the order in which ``batch_moments`` had them.
        drawn: Holds what ``SetMoments.elsewhere`` gave.
        teacher: Whose layers these are.
    """
    values, images = drawn[_VALUES.format(teacher)], drawn[_COUNT.format(teacher)]
    widths = [one.shift.shape[1] for one in layers]
    shifts, squares = (torch.split(row, widths) for row in values.unbind())
    return tuple(
        LayerStatistics(
            one.shift, one.square, one.pixels, one.stored_var, Elsewhere(shift, square, images)
        )
        for one, shift, square in zip(layers, shifts, squares, strict=True)
    )


@dataclass
class SetMoments:
    """What every batch of the set last caused.

    Attributes:
        widths: ΣC per teacher.
        size: Images of a batch.
        device: Where the batches are optimised.
        latest: Moments of every batch that had a turn.
    """

    widths: Mapping[str, int]
    size: int
    device: torch.device
    latest: dict[int, Moments] = field(default_factory=dict)

    def put(self, batch: int, moments: Moments) -> None:
        """Remember what a batch caused at the end of its turn."""
        self.latest[batch] = moments

    def elsewhere(self, batch: int) -> dict[str, Tensor]:
        """What all batches but this one cause together, for ``joined_with``.

        Summed anew in a fixed order and in double precision: nothing drifts, and an interrupted
        run goes on with the very same numbers.

        Args:
            batch: The one whose turn it is.
        """
        found: dict[str, Tensor] = {}
        for teacher, width in self.widths.items():
            others = [
                moments[teacher].cpu().double()
                for number, moments in sorted(self.latest.items())
                if number != batch and teacher in moments
            ]
            mean = torch.stack(others).mean(dim=0) if others else torch.zeros(2, width)
            found[_VALUES.format(teacher)] = mean.float().to(self.device)
            count = torch.tensor(float(self.size * len(others)), device=self.device)
            found[_COUNT.format(teacher)] = count
        return found

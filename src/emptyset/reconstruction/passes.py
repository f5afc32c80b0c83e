"""One pass of all images through a stretch of the student, part by part."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from emptyset.errors import CollapseError
from emptyset.reconstruction.caches import Rows

Stretch = Callable[[Tensor], Tensor]


def parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of images; their size depends on nothing but the method's batch, so that what comes
    out does not depend on how much memory there is.
    """
    for start in range(0, count, size):
        yield start, min(start + size, count)


@torch.no_grad()
def forward(stretch: Stretch, source: Rows, into: Rows, size: int) -> None:
    """Write the stretch's output for every image."""
    for start, stop in parts(len(source), size):
        into.write(start, stretch(source.read(start, stop)))


def require_finite(rows: Rows, size: int, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        CollapseError: Naming ``what``.
    """
    for start, stop in parts(len(rows), size):
        if not bool(torch.isfinite(rows.read(start, stop)).all()):
            raise CollapseError(
                f"{what} holds NaN or infinity. Look for them in the teacher's weights and in the "
                "images."
            )


@torch.no_grad()
def distance(
    stretch: Stretch,
    source: Rows,
    target: Rows,
    size: int,
    *,
    axis: int,
    limit: int | None = None,
) -> float:
    """Squared distance of outputs from targets, summed over channels, mean over all else.

    Args:
        stretch: What is measured.
        source: Its inputs.
        target: What should come out.
        size: Images at once.
        axis: Channel axis of the output.
        limit: At most this many images; None: all.

    Returns:
        [output units squared]; 0 exactly when all are equal; not finite where outputs are not.
    """
    count = len(source) if limit is None else min(limit, len(source))
    total, positions = 0.0, 1
    for start, stop in parts(count, size):
        gap = stretch(source.read(start, stop)) - target.read(start, stop)
        total += float(gap.square().sum(dtype=torch.double))
        positions = gap[0].numel() // gap.shape[axis]
    return total / (count * positions)

"""What a reconstruction tells its user: sizes beforehand, doubtful images, errors afterwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emptyset.graph.blocks import Block
from emptyset.graph.room import gigabytes
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import Monitor, State
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.memory import BlockSizes, most_held
from emptyset.reconstruction.units import Unit, read_twice


@dataclass(frozen=True)
class Told:
    """What became of a unit.

    Attributes:
        name: Module path.
        start: Error before, every weight as it was rounded then [output units squared].
        final: Error after; never above ``start``.
        kept: Whether what was learnt was kept; else the unit is as it was before.
        steps: Optimizer steps that were done; fewer than planned where it stopped early.
    """

    name: str
    start: float
    final: float
    kept: bool
    steps: int

    def state(self) -> State:
        """To keep with the unit."""
        values = [self.start, self.final, float(self.kept), float(self.steps)]
        return {"errors": torch.tensor(values, dtype=torch.double)}

    @staticmethod
    def of(name: str, state: State) -> "Told":
        """From what was kept."""
        start, final, kept, steps = state["errors"].tolist()
        return Told(name, start, final, bool(kept), int(steps))

    def record(self) -> dict[str, Any]:
        """As JSON data; what is not finite is None."""
        errors = {"start": self.start, "final": self.final}
        finite = {name: e if math.isfinite(e) else None for name, e in errors.items()}
        return {"block": self.name, **finite, "kept": self.kept, "steps": self.steps}


def note_images(
    name: str, student: Student, images: Images, config: ReconstructionConfig, monitor: Monitor
) -> None:
    """Tell of few images and of layers left out."""
    if len(images) < config.batch_size:
        monitor.note(
            f"{name}: {len(images)} images are fewer than batch_size ({config.batch_size}), so "
            "every step takes all of them."
        )
    twice = read_twice(student)
    if twice:
        monitor.note(
            f"{name}: the rounding of {', '.join(twice)} is not learnt, as one weight is used by "
            "several layers."
        )


def note_unweighted(
    course: Course, blocks: Sequence[Block], units: Sequence[Sequence[Unit]], monitor: Monitor
) -> None:
    """Say in which blocks distances are not weighted though that was asked for."""
    left = [
        block.name
        for block, inside in zip(blocks, units, strict=True)
        if any(unit.body is not block.module for unit in inside)
    ]
    if course.weighting != "none" and left:
        monitor.note(
            f"{course.name}: {', '.join(left)} has so many layers that they are learnt one by one; "
            f"there weighting '{course.weighting}' is not used."
        )


def note_sizes(
    course: Course,
    blocks: Sequence[Block],
    sizes: Sequence[BlockSizes],
    images: int,
    limit: int,
    monitor: Monitor,
) -> None:
    """Say how much room inputs and targets will take, and where."""
    one, number = most_held(course, sizes)
    most = images * one
    where = "in memory"
    if most > limit:
        halves = "in bfloat16 or " if course.config.half_caches else ""
        where = f"of which {gigabytes(limit)} fit into memory; the rest goes {halves}to files"
    monitor.note(
        f"{course.name}: inputs and targets of {images:,} images take up to {gigabytes(most)} "
        f"(block {blocks[number].name}), {where}."
    )


def note_errors(name: str, told: Sequence[Told], monitor: Monitor) -> None:
    """Say how far the errors fell, and which units were left as they were."""
    ratios = [one.final / one.start for one in told if one.start > 0]
    if not ratios:
        return
    mean = math.exp(sum(math.log(max(ratio, 1e-12)) for ratio in ratios) / len(ratios))
    left = [one.name for one in told if not one.kept]
    text = f"{name}: errors of {len(told)} blocks fell to {100 * mean:.0f} % of what they were"
    if left:
        text += f"; left as they were, since learning did not help: {', '.join(left)}"
    monitor.note(f"{text}.")

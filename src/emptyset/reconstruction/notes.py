"""What a reconstruction tells its user: sizes beforehand, doubtful images, errors afterwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from emptyset.graph.blocks import Block
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import Monitor, State
from emptyset.reconstruction.caches import gigabytes
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.memory import BlockSizes, row_bytes
from emptyset.reconstruction.units import read_twice


@dataclass(frozen=True)
class Told:
    """What became of a unit.

    Attributes:
        name: Module path.
        start: Error before, every weight as it was rounded then [output units squared].
        final: Error after; never above ``start``.
        kept: Whether what was learnt was kept; else the unit is as it was before.
    """

    name: str
    start: float
    final: float
    kept: bool

    def state(self) -> State:
        """To keep with the unit."""
        values = torch.tensor([self.start, self.final, float(self.kept)], dtype=torch.double)
        return {"errors": values}

    @staticmethod
    def of(name: str, state: State) -> "Told":
        """From what was kept."""
        start, final, kept = state["errors"].tolist()
        return Told(name, start, final, bool(kept))


def note_images(
    name: str, student: Student, images: Images, config: ReconstructionConfig, monitor: Monitor
) -> None:
    """Warn of images that were made for another teacher, of few images, of layers left out."""
    own = student.teacher.weights_hash
    history = getattr(images, "history", ())
    made = [entry for entry in history if entry.get("stage") == "synthesize"]
    others = [entry for entry in made if own and entry.get("teacher", own) != own]
    if others:
        entry = others[0]
        monitor.note(
            f"Warning: {name}: these images were made by {entry.get('method')} for a teacher with "
            f"weights {str(entry['teacher'])[:12]}, and the student's teacher is "
            f"{student.teacher.name} with weights {own[:12]}. Make images for this teacher."
        )
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


def note_sizes(
    course: Course,
    blocks: Sequence[Block],
    sizes: Sequence[BlockSizes],
    images: int,
    limit: int,
    monitor: Monitor,
) -> None:
    """Say how much room inputs and targets will take, and where."""
    needed = []
    for number, block in enumerate(sizes):
        copies = [block.input, block.output]
        if course.inputs != "float" and number > 0:
            copies.append(block.input if course.inputs == "mixed" else block.output)
        if course.weighting != "none":
            copies.append(block.output)
        parts = [row_bytes(unit.input, unit.input, unit.output) for unit in block.units]
        extra = max(parts) if len(block.units) > 1 or course.by_layer else 0
        needed.append(images * (row_bytes(*copies) + extra))
    most = max(needed)
    where = "in memory"
    if most > limit:
        halves = "in bfloat16 or " if course.config.half_caches else ""
        where = f"of which {gigabytes(limit)} fit into memory; the rest goes {halves}to files"
    monitor.note(
        f"{course.name}: inputs and targets of {images:,} images take up to {gigabytes(most)} "
        f"(block {blocks[needed.index(most)].name}), {where}."
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

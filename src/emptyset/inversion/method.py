"""What makes an inversion method: the parts that the engine puts together."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from emptyset.inversion.canvas import Canvas, Pixels
from emptyset.inversion.schedules import Schedule
from emptyset.inversion.updates import Update
from emptyset.losses.layer_statistics import Elsewhere, LayerStatistics, input_statistics
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class Opinion:
    """What one of several further teachers makes of the images; everything float32.

    Attributes:
        logits: ``(N, K)``.
        layers: Statistics of every BatchNorm input, in the order of the calls.
    """

    logits: Tensor
    layers: tuple[LayerStatistics, ...]


@dataclass(frozen=True)
class Seen:
    """What an objective may look at; everything float32.

    Attributes:
        images: ``(N, C, H, W)`` as shown to the teacher [standardised pixel units].
        logits: ``(N, K)``.
        features: ``(N, F)`` input of the last layer (``teachers/last_layer.py``), or None where
            there is none.
        layers: Statistics of every BatchNorm input, in the order of the calls.
        targets: ``(N,)``, ``(N, K)``, or None.
        drawn: What ``Method.draw`` drew for this step, and what ``Method.context`` gave.
        others: What the further teachers chosen for this step see (``Method.others``).
        images_elsewhere: Moments of the images of the other batches, where the set is matched
            jointly.
    """

    images: Tensor
    logits: Tensor
    features: Tensor | None
    layers: tuple[LayerStatistics, ...]
    targets: Tensor | None
    drawn: Mapping[str, Tensor]
    others: tuple[Opinion, ...] = ()
    images_elsewhere: Elsewhere | None = None

    def image_statistics(self) -> LayerStatistics:
        """Statistics of the images themselves, beside the mean 0 and variance 1 of the data."""
        own = input_statistics(self.images)
        return LayerStatistics(
            own.shift, own.square, own.pixels, own.stored_var, self.images_elsewhere
        )


class OtherImages(Protocol):
    """Images [standardised pixel units] and targets of other batches, on the CPU.

    They may be read from a disk while they are looked at: going through them once is best.
    """

    def __len__(self) -> int:
        """How many batches, each harvest counted."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One after the other."""


@dataclass(frozen=True)
class BatchStart:
    """What is there when a batch begins.

    Attributes:
        look: What the teacher makes of images ``(M, C, H, W)`` [standardised pixel units] of any
            device, in float32 and without gradients.
        earlier: Images [standardised pixel units] and targets of the batches before, on the CPU;
            with joint statistics, of all other batches that had a turn.
        generator: Source of everything random in this batch.
        shape: ``(N, C, H, W)`` of the batch.
    """

    look: Callable[[Tensor], Seen]
    earlier: OtherImages
    generator: torch.Generator
    shape: tuple[int, int, int, int]


Objective = Callable[[Seen], Tensor]
"""Scalar loss, to be made small. Must not read tensor values on the host."""

Draw = Callable[[int, torch.Generator, int], dict[str, Tensor]]
"""``(step, generator, N)`` to the random numbers of one step, of the same shapes every time."""

Context = Callable[[BatchStart], dict[str, Tensor]]
"""What stays the same over all steps of a batch, of the same shapes in every batch."""

Finish = Callable[[Tensor, Tensor | None, torch.Generator], tuple[Tensor, Tensor | None]]
"""Finished images [standardised pixel units] and targets to those that are stored."""

Augment = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Images and the drawn numbers to the images that the teacher is shown; differentiable."""


@dataclass(frozen=True)
class Group:
    """How one of the canvas's variables moves."""

    update: Update
    schedule: Schedule


@dataclass(frozen=True)
class Method:
    """One inversion method.

    Attributes:
        name: As registered; names the kept states and the messages.
        objective: The loss.
        groups: One per variable of the canvas.
        steps: Steps per batch.
        batch_size: Most images optimised together.
        canvas: What is optimised.
        targets: ``(generator, N)`` to the targets of a batch; None: no targets.
        draw: Random numbers of each step.
        context: Numbers that hold for a whole batch.
        context_follows: The context looks at other batches, which are kept for it; with joint
            statistics it is made anew at every turn, from the same random numbers.
        augment: Changes the images before the teacher sees them.
        finish: Changes finished images and targets; not with several snapshots.
        low_pass: Cut-off of the filter over finished images (``images/low_pass.py``), or None.
        others: Further teachers. In a step those run for which ``draw`` gives ``other.NUMBER``.
        swing: Shift what strided convolutions see (``inversion/swing.py``), by the offsets that
            ``draw`` gives as ``swing``.
        snapshots: Numbers of steps after which the images are harvested; empty: after the last.
        keep_best: Harvest the images of the smallest loss instead of the last ones; never where
            several batches are matched as one set, whose moments are those of the last images.
        best_from: Number of the first step whose images may be the best.
        needs_batch_norm: Refuse teachers without BatchNorm layers.
        joint_steps: Steps of a batch before it is the next one's turn, where statistics are those
            of all batches together; None: every batch is matched on its own.
    """

    name: str
    objective: Objective
    groups: tuple[Group, ...]
    steps: int
    batch_size: int
    canvas: Canvas = field(default_factory=Pixels)
    targets: Callable[[torch.Generator, int], Tensor] | None = None
    draw: Draw | None = None
    context: Context | None = None
    context_follows: bool = True
    augment: Augment | None = None
    finish: Finish | None = None
    low_pass: float | None = None
    others: tuple[Teacher, ...] = ()
    swing: bool = False
    snapshots: tuple[int, ...] = ()
    keep_best: bool = False
    best_from: int = 0
    needs_batch_norm: bool = True
    joint_steps: int | None = None

    def __post_init__(self) -> None:
        if self.snapshots and self.keep_best:
            raise ValueError("A method harvests snapshots or the best images, not both.")
        if self.finish is not None and len(self.snapshots) > 1:
            raise ValueError("A method that finishes its images harvests once. Got snapshots too.")
        if any(not 1 <= s <= self.steps for s in self.snapshots):
            raise ValueError(f"Snapshots must lie in 1..{self.steps}. Got {self.snapshots}.")

    @property
    def looks_at_others(self) -> bool:
        """Whether the images of other batches have to be at hand when a batch starts."""
        return self.context is not None and self.context_follows

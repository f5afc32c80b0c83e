"""TexQ's first stage: one image per class, and what it causes in the teacher.

Reconstruction: TexQ's code was not released and its paper could not be seen. Loss and schedule are
those of SynQ's released re-implementation (cross entropy and layered BatchNorm statistics), with
the texture term that TexQ is reported to have (``losses/texture_energy.py``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.images.image_set import ImageSet
from emptyset.inversion.engine import invert
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.schedules import Plateau
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import layered_statistics
from emptyset.losses.class_centres import ClassCentres
from emptyset.losses.texture_energy import texture_energy_loss
from emptyset.monitor import Monitor, PrefixedMonitor, State
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class CentreSettings:
    """How the images of the classes are made.

    Attributes:
        steps: Steps of Adam.
        learning_rate: First step size [standardised pixel units per step].
        minimum_rate: Last step size.
        patience: Steps without a new best loss before the step size falls to a tenth.
        label_weight: Of the cross entropy with the class.
        shallow: Weight of the BatchNorm statistics in the first half of the layers.
        deep: The same of the others.
        texture_weight: Of the texture term.
        highest: θ_U, most that one texture energy may have.
        lowest: ε, least that each of the dominant ones must have.
        dominant: k, how many there must be.
        at_once: Most classes whose images are made together.
    """

    steps: int
    learning_rate: float
    minimum_rate: float
    patience: int
    label_weight: float
    shallow: float
    deep: float
    texture_weight: float
    highest: float
    lowest: float
    dominant: int
    at_once: int


class CalibrationCentres:
    """The calibration centres of all classes, as a source's groundwork.

    Args:
        teacher: The classifier; it is copied, never changed.
        classes: Its number of classes.
        settings: How the images are made.
    """

    def __init__(self, teacher: Teacher, classes: int, settings: CentreSettings) -> None:
        self._teacher, self._classes, self._settings = teacher, classes, settings
        self._centres: ClassCentres | None = None

    @property
    def centres(self) -> ClassCentres:
        """What was found, where the teacher is."""
        assert self._centres is not None, "the groundwork was not laid"
        return self._centres

    def lay(self, *, seed: int, monitor: Monitor) -> None:
        """Make the images and look at them, if that is not done.

        Args:
            seed: Of everything random.
            monitor: Hears of progress; keeps what was done, so that a killed run goes on.
        """
        if self._centres is not None:
            return
        frozen = FrozenTeacher(self._teacher)
        # Even parts: no class is alone, where there are two to a part.
        parts = -(-self._classes // self._settings.at_once)
        found = []
        for number, labels in enumerate(torch.arange(self._classes).tensor_split(parts)):
            own = PrefixedMonitor(monitor, f"centres.{number}")
            images = self.images_of(labels, seed=seed * 1_000_003 + 7 + number, monitor=own).images
            standard = frozen.units.from_teacher(images.to(frozen.device))
            found.append(ClassCentres.of(frozen.look(standard).layers))
        self._centres = ClassCentres(
            tuple(torch.cat(values) for values in zip(*(c.shifts for c in found), strict=True)),
            tuple(torch.cat(values) for values in zip(*(c.variances for c in found), strict=True)),
        )

    def images_of(self, labels: Tensor, *, seed: int, monitor: Monitor) -> ImageSet:
        """One image for each of these classes, in the teacher's normalised units.

        Args:
            labels: ``(N,)`` class indices.
            seed: Of everything random.
            monitor: Hears of progress, keeps and restores states.
        """
        settings = self._settings
        schedule = Plateau(
            settings.learning_rate, patience=settings.patience, minimum=settings.minimum_rate
        )
        method = Method(
            name="texq",
            objective=self.objective,
            groups=(Group(Adam(), schedule),),
            steps=settings.steps,
            batch_size=max(2, len(labels)),
            # A single class is shown twice: the statistics of a batch say nothing of one image.
            targets=lambda _, count: labels[torch.arange(count) % len(labels)],
        )
        return invert(method, self._teacher, len(labels), seed=seed, settings={}, monitor=monitor)

    def objective(self, seen: Seen) -> Tensor:
        """Loss = w_CE · CE + layered statistics + w_T · texture."""
        settings = self._settings
        assert seen.targets is not None
        loss = layered_statistics(seen.layers, shallow=settings.shallow, deep=settings.deep)
        if settings.label_weight:
            entropy = torch.nn.functional.cross_entropy(seen.logits, seen.targets)
            loss = loss + settings.label_weight * entropy
        if settings.texture_weight:
            texture = texture_energy_loss(
                seen.images,
                highest=settings.highest,
                lowest=settings.lowest,
                dominant=settings.dominant,
            )
            loss = loss + settings.texture_weight * texture
        return loss

    def state(self) -> State:
        """Shifts and variances, layer by layer."""
        if self._centres is None:
            return {}
        return {
            f"{kind}.{number}": value
            for kind, values in vars(self._centres).items()
            for number, value in enumerate(values)
        }

    def load_state(self, state: State) -> None:
        """Take over what ``state`` gave."""
        if not state:
            return
        device = self._teacher.example(1).device
        found = {
            kind: tuple(state[f"{kind}.{n}"].to(device) for n in range(len(state) // 2))
            for kind in ("shifts", "variances")
        }
        self._centres = ClassCentres(**found)

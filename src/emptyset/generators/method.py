"""What makes a generator method: the parts that its source puts together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emptyset.errors import UnsupportedModelError
from emptyset.generators.class_mixture import LabelSampler
from emptyset.generators.generator import Generator
from emptyset.generators.groundwork import Groundwork
from emptyset.generators.judged import FEATURES, STATISTICS, STUDENT, Term
from emptyset.generators.settings import GeneratorConfig
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class GeneratorMethod:
    """One generator method.

    Attributes:
        name: As registered.
        build: Makes the network, without values; called on the meta device.
        sampler: Draws the labels.
        terms: The loss.
        config: Optimizer and schedule.
        settings: All settings, for the record (JSON data).
        prepare: Changes the network after its first values were drawn.
        labelled: Whether images are made for labels that they keep.
        student_steps: So many batches only the student learns from, before one only the generator
            learns from; 0: both learn from every batch.
        groundwork: Done before the first lesson; terms read what it found.
    """

    name: str
    build: Callable[[], Generator]
    sampler: LabelSampler
    terms: tuple[Term, ...]
    config: GeneratorConfig
    settings: Mapping[str, Any]
    prepare: Callable[[Generator], None] | None = None
    labelled: bool = True
    student_steps: int = 0
    groundwork: Groundwork | None = None

    def needs(self, what: str) -> bool:
        """Whether a term needs ``statistics``, ``student`` or ``features``."""
        return any(what in term.needs for term in self.terms)

    @property
    def needs_student(self) -> bool:
        """Whether it learns from what the student says."""
        return self.needs(STUDENT) or self.needs(FEATURES)

    def refuse(self, teacher: Teacher) -> None:
        """Refuse a teacher without what the loss needs.

        Raises:
            UnsupportedModelError: With the alternatives.
        """
        if self.needs(STATISTICS) and not teacher.stored_batch_norms():
            weights = " and ".join(term.setting for term in self.terms if STATISTICS in term.needs)
            raise UnsupportedModelError(
                f"{self.name} matches BatchNorm statistics, but {teacher.name} "
                f"({type(teacher.module).__name__}) has no BatchNorm layer that stored any. Set "
                f"{weights} to 0, use the source `zaq`, or best give real images instead: "
                "--images DIR."
            )

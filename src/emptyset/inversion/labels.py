"""Class labels that images are made for."""

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

Labels = Callable[[torch.Generator, int], Tensor]
"""``(generator, N)`` to ``(N,)`` class indices."""


class ForClasses(Protocol):
    """Settings of a method that can make images for classes.

    Attributes:
        classes: These only; empty: all.
        uses_classes: Whether it does.
    """

    @property
    def classes(self) -> tuple[int, ...]:
        """Class indices."""

    @property
    def uses_classes(self) -> bool:
        """Yes or no."""


def class_count(teacher: Teacher, method: str) -> int:
    """Number of the teacher's classes, by asking it.

    Raises:
        UnsupportedModelError: If it gives no logits of two classes or more.
    """
    # A copy: in training mode a forward would change the statistics that BatchNorm stores.
    module = copy.deepcopy(teacher.module).eval()
    with torch.no_grad():
        logits = module(teacher.example(1))
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"{method} makes images of classes, so it needs a classifier of at least 2 classes; "
            f"{teacher.name} gives {shape} for one image. Methods that need no classes: "
            f"{', '.join(_without_classes())}."
        )
    return logits.shape[1]


def known_class_count(teacher: Teacher) -> int | None:
    """The same; None for what is no classifier."""
    try:
        return class_count(teacher, "labels")
    except UnsupportedModelError:
        return None


def _without_classes() -> list[str]:
    """Registered ways to images that need no classes, and the weights some have to set to 0."""
    found = []
    for entry in synthesizers.entries():
        fields = entry.config.__dataclass_fields__
        weights = getattr(entry.config, "class_weights", ())
        if "classes" in fields and not weights:
            continue  # another package's, which does not say how to do without
        needed = [f"{weight} 0" for weight in weights if fields[weight].default != 0]
        found.append(f"`{entry.name}`" + (f" with {' and '.join(needed)}" if needed else ""))
    return found


def random_labels(teacher: Teacher, method: str, config: ForClasses) -> Labels | None:
    """Draws class indices, each class as likely as any other.

    Args:
        teacher: The classifier.
        method: Named in messages.
        config: Its settings.

    Returns:
        None where the settings make images for no class: a label that nothing asked for would be
        a wrong one.

    Raises:
        UnsupportedModelError: If the teacher is no classifier of at least 2 classes.
        ImagesError: If a class is none of the teacher's, or named twice.
    """
    if not config.uses_classes:
        return None
    classes = config.classes
    count = class_count(teacher, method)
    wrong = [c for c in classes if not 0 <= c < count]
    if wrong:
        raise ImagesError(
            f"{method}: class {wrong[0]} is asked for, but {teacher.name} has classes 0 to "
            f"{count - 1}."
        )
    if len(set(classes)) < len(classes):
        raise ImagesError(f"{method}: a class is asked for twice in {list(classes)}.")
    allowed = torch.tensor(classes or range(count))

    def draw(generator: torch.Generator, size: int) -> Tensor:
        return allowed[torch.randint(len(allowed), (size,), generator=generator)]

    return draw

"""Class labels that images are made for."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.teachers.teacher import Teacher


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
            f"{teacher.name} gives {shape} for one image. `zeroq` and `genie_d` need no classes."
        )
    return logits.shape[1]


def random_labels(
    teacher: Teacher, method: str, classes: tuple[int, ...] = ()
) -> Callable[[torch.Generator, int], Tensor]:
    """Draws class indices, each class as likely as any other.

    Args:
        teacher: The classifier.
        method: Named in messages.
        classes: Only these; empty: all.

    Returns:
        ``(generator, N)`` to ``(N,)`` class indices.

    Raises:
        UnsupportedModelError: If the teacher is no classifier of at least 2 classes.
        ImagesError: If a class is none of the teacher's, or named twice.
    """
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

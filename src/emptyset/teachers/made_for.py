"""Images say for which teacher they were made."""

from typing import Any

from emptyset.errors import RecipeError
from emptyset.teachers.teacher import Teacher


def made_for_another(images: Any, teacher: Teacher) -> str | None:
    """A warning that names both teachers where these images were made for another one, or None.

    Args:
        images: A set, a stored one, or a source of one: what has a ``history``. Of anything else
            nothing is known.
        teacher: Of the student that is to learn from them.
    """
    own = teacher.weights_hash
    stored = images if hasattr(images, "history") else getattr(images, "images", None)
    for entry in getattr(stored, "history", ()):
        other = entry.get("teacher")
        if entry.get("stage") != "synthesize" or not own or not other or other == own:
            continue
        name = entry.get("teacher_name", "a teacher")
        return (
            f"Warning: these images were made by {entry.get('method')} for {name} with weights "
            f"{str(other)[:12]}, and the student's teacher is {teacher.public_name} with weights "
            f"{own[:12]}. Make images for this teacher."
        )
    return None


def require_own_source(source: Any, teacher: Teacher) -> None:
    """Refuse a live source of another teacher: it also says what the teacher says of its images.

    Args:
        source: With a ``card``, or around another ``source`` that has one; of others nothing is
            known.
        teacher: Of the student that is to learn beside it.

    Raises:
        RecipeError: If weights or normalisation differ.
    """
    while not hasattr(source, "card") and hasattr(source, "source"):
        source = source.source
    if not hasattr(source, "card"):
        return
    card, spec = source.card(), teacher.input
    own = (teacher.weights_hash, list(spec.mean), list(spec.std))
    theirs = (card.get("teacher"), card.get("mean"), card.get("std"))
    if own[0] and theirs[0] and own != theirs:
        what = "weights" if own[0] != theirs[0] else "mean or std"
        raise RecipeError(
            f"This source ({card.get('method')}) was made for {card.get('teacher_name')} with "
            f"weights {str(theirs[0])[:12]}, and the student's teacher is {teacher.public_name} "
            f"with weights {own[0][:12]}: the {what} differ. Make a source of the student's "
            "teacher: emptyset.source(teacher, ...)."
        )

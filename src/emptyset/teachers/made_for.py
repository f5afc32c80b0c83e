"""Images say for which teacher they were made."""

from typing import Any

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

"""Teachers without BatchNorm: refused by the methods that need it, with a way out."""

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.config import InversionConfig
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

# What it is called in every method whose statistics can be switched off.
_WEIGHT = "statistics_weight"


def require_batch_norm(teacher: Teacher, method: str) -> None:
    """Refuse a teacher that stored no statistics.

    Args:
        teacher: What images are to be made for.
        method: Named in the message.

    Raises:
        UnsupportedModelError: Naming the methods that do without.
    """
    if teacher.stored_batch_norms():
        return
    raise UnsupportedModelError(
        f"{method} matches BatchNorm statistics, but {teacher.name} "
        f"({type(teacher.module).__name__}) has no BatchNorm layer that stored any. Best give real "
        f"images instead: --images DIR. Methods that do without: {', '.join(_without())}."
    )


def _without() -> list[str]:
    """Registered methods that need no statistics, and the setting that some need for that."""
    found = []
    for entry in synthesizers.entries():
        if not issubclass(entry.config, InversionConfig):
            found.append(f"`{entry.name}`")
        elif _WEIGHT in entry.config.__dataclass_fields__:
            found.append(f"`{entry.name}` with {_WEIGHT} 0")
    return found

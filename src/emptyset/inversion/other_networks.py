"""Further networks that a method asks beside its teacher."""

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.labels import class_count
from emptyset.teachers.teacher import Teacher


def named_network(name: str) -> Teacher:
    """A network by the name that teachers have, for example ``timm:resnet50``.

    Raises:
        TeacherError: If it cannot be loaded.
        UnknownNameError: If there is none of this name.
    """
    from emptyset.teachers import load_teacher

    return load_teacher(name)


def require_same_task(teacher: Teacher, other: Teacher, method: str) -> None:
    """Refuse a network that cannot look at the same images, or that knows other classes.

    Args:
        teacher: What the images are made for.
        other: Looks at them too.
        method: Named in the message.

    Raises:
        UnsupportedModelError: If image shape or number of classes differ.
    """
    wanted = (teacher.input.shape, class_count(teacher, method))
    found = (other.input.shape, class_count(other, method))
    if found != wanted:
        raise UnsupportedModelError(
            f"{method}: all networks need images of one size and the same classes. {teacher.name} "
            f"has {wanted[0]} and {wanted[1]} classes, {other.name} {found[0]} and {found[1]}. "
            "Leave it out."
        )

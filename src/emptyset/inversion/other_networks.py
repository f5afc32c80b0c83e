"""Further networks that a method asks beside its teacher, and how settings name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emptyset.errors import EmptysetError, RecipeError, UnsupportedModelError
from emptyset.inversion.labels import class_count
from emptyset.settings import Places, checked_config, complaint, dotted
from emptyset.teachers import load_teacher
from emptyset.teachers.teacher import Teacher

Network = str | dict[str, Any]
"""A name as teachers have it, ``timm:resnet50``, or the keys of ``NetworkSection``."""

_NEEDED_BY_FILE = ("model", "input", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class NetworkSection:
    """A network in as many words as a recipe's ``teacher`` section has.

    Attributes:
        name: Source and name, for example ``file:weights.safetensors``.
        model: ``module:function`` that builds the network; for ``file:``.
        model_args: Its keyword arguments.
        input: ``(C, H, W)`` [pixels], or ``3x32x32``; for ``file:``.
        mean: Per channel [pixel units, 0..1]; for ``file:``.
        std: Per channel [pixel units, 0..1]; for ``file:``.
        weights: Local file that replaces the source's own weights.
        classes: File of class names.
    """

    name: str
    model: str | None = None
    model_args: dict[str, Any] | None = None
    input: str | tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: str | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        self.shape()
        missing = [key for key in _NEEDED_BY_FILE if getattr(self, key) is None]
        if self.name.startswith("file:") and missing:
            raise RecipeError(
                f"'{self.name}' does not say what to compute, nor how images are to be prepared. "
                f"Missing: {', '.join(missing)}. Write a section, for example "
                f'{{name: "{self.name}", model: "module:function", input: 3x32x32, '
                "mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"
            )

    def shape(self) -> tuple[int, int, int] | None:
        """``input`` as numbers.

        Raises:
            ValueError: If it is a text of another form.
        """
        if not isinstance(self.input, str):
            return self.input
        parts = self.input.lower().split("x")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"'input' must be CxHxW, such as 3x32x32. Got '{self.input}'.")
        channels, height, width = map(int, parts)
        return channels, height, width


def network_section(network: Network, *where: str | int) -> NetworkSection:
    """What the settings say of a network, checked; nothing is loaded.

    Args:
        network: Its name, or a section.
        where: The setting, and the number within it, for messages.

    Raises:
        RecipeError: If a key is unknown, a value is wrong, or ``file:`` lacks what it needs.
    """
    if isinstance(network, str):
        network = {"name": network}
    if not isinstance(network, Mapping):
        raise RecipeError(
            complaint(
                where,
                Places(),
                "expected a network's name or a section with `name` and what else it takes, got "
                f"{type(network).__name__}.",
            )
        )
    section: NetworkSection = checked_config(NetworkSection, network, where=where)
    return section


def named_network(network: Network, *where: str | int) -> Teacher:
    """The network that the settings name.

    Args:
        network: Its name, or a section.
        where: The setting, and the number within it, for messages.

    Raises:
        RecipeError: As ``network_section``.
        TeacherError: If it cannot be loaded.
        UnknownNameError: If there is none of this name.
    """
    section = network_section(network, *where)
    try:
        return load_teacher(
            section.name,
            model=section.model,
            model_args=section.model_args,
            input_shape=section.shape(),
            mean=section.mean,
            std=section.std,
            weights=Path(section.weights) if section.weights else None,
            classes=Path(section.classes) if section.classes else None,
        )
    except EmptysetError as error:
        raise type(error)(f"{dotted(where)}: {error}{_options_here(str(error))}") from error


def _options_here(message: str) -> str:
    """What the command line's options mean for a network that settings name."""
    if "--allow-pickle" in message:
        return (
            " For this network there is no --allow-pickle: save its state dict, or load it in "
            "Python and give it to the method."
        )
    if "--" in message:
        return " Where this names an option, change the key of that name in this section."
    return ""


def require_same_task(
    teacher: Teacher, other: Teacher, method: str, *, classes: bool = True
) -> None:
    """Refuse a network that cannot look at the same images, or that knows other classes.

    Args:
        teacher: What the images are made for.
        other: Looks at them too.
        method: Named in the message.
        classes: Whether they matter.

    Raises:
        UnsupportedModelError: If image shape or number of classes differ.
    """
    shapes = (teacher.input.shape, other.input.shape)
    counts = [class_count(network, method) if classes else 0 for network in (teacher, other)]
    if shapes[0] == shapes[1] and counts[0] == counts[1]:
        return
    first, second = (
        f"{shape} and {count} classes" if classes else f"{shape}"
        for shape, count in zip(shapes, counts, strict=True)
    )
    raise UnsupportedModelError(
        f"{method}: all networks need images of one size and the same classes. {teacher.name} "
        f"has {first}, {other.name} {second}. Leave it out."
    )

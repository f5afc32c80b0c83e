"""Generators beside the data flow: made for a teacher, trained with a student, drawn from later.

Plain functions, each usable alone. Nothing here knows recipes, run folders or screens.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset.errors import ImagesError
from emptyset.registry import sources
from emptyset.settings import checked_config
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.generators.generator_source import GeneratorSource


def source(
    teacher: Teacher, method: str = "qimera", *, seed: int = 0, **settings: Any
) -> "GeneratorSource":
    """A generator that ``refine(student, source, "distill")`` trains beside the student.

    Args:
        teacher: The trained network; the source is made where it is.
        method: A source, see ``emptyset methods``.
        seed: Seed of everything random.
        **settings: Settings of the method.

    Raises:
        UnknownNameError: If there is no such method.
        RecipeError: If a setting is wrong.
        UnsupportedModelError: If the teacher lacks what the method needs.
    """
    entry = sources.get(method)
    maker = entry.make(checked_config(entry.config, settings, where=(method,)))
    made: GeneratorSource = maker.source(teacher, seed=seed)
    return made


def generator_from(path: Path | str, teacher: Teacher) -> "GeneratorSource":
    """A trained generator read from its file; ``drawn(count, seed=...)`` gives its images.

    Args:
        path: The ``generator.safetensors`` of a run with a source.
        teacher: The network that it was trained for.

    Raises:
        ImagesError: If the file cannot be read, or belongs to another teacher.
    """
    from emptyset.generators.generator_file import read_generator

    card, network = read_generator(Path(path))
    if card["teacher"] != teacher.weights_hash or card["input"] != list(teacher.input.shape):
        raise ImagesError(
            f"{path}: was trained for another teacher, with images of "
            f"{'x'.join(map(str, card['input']))} and weights {card['teacher'][:12]}. "
            f"{teacher.name} has {'x'.join(map(str, teacher.input.shape))} and "
            f"{teacher.weights_hash[:12]}. Give the teacher of the run that wrote it."
        )
    made = source(teacher, card["method"], seed=card["seed"], **card["settings"])
    made.load_network(network, card)
    return made


def draw_to(
    folder: Path | str, source: "GeneratorSource", count: int, *, seed: int = 0
) -> dict[str, Any]:
    """Store images of a trained generator while they are made; memory does not grow with them.

    Args:
        folder: Where ``images.safetensors`` and ``card.json`` go.
        source: From ``generator_from``, or one that was trained.
        count: At least 2.
        seed: Of labels and noise.

    Returns:
        What the card holds: ``count``, ``shape``, ``units``, ``digest``, ``history``.

    Raises:
        ImagesError: If the count is below 2.
    """
    from emptyset.images.image_writer import ImageSetWriter

    with ImageSetWriter(Path(folder), count) as writer:
        for batch in source.draws(count, seed=seed):
            writer.add(batch)
        return writer.finish((source.card() | {"count": count, "draw_seed": seed},))

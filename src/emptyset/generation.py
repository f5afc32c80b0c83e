"""Generators beside the data flow: made for a teacher, trained with a student, drawn from later.

Plain functions, each usable alone. Nothing here knows recipes, run folders or screens.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emptyset.errors import ImagesError, RecipeError
from emptyset.inversion.labels import class_count
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import sources
from emptyset.settings import checked_config
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.generators.generator_source import GeneratorSource
    from emptyset.images.image_set import ImageSet
    from emptyset.images.image_source import LiveSource
    from emptyset.images.images_beside import WithImagesBeside

CHOICES = ("confusing", "unconfusing", "all")


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


def with_real_images(
    source: "LiveSource",
    images: "ImageSet",
    teacher: Teacher,
    *,
    choose: str = "confusing",
    per_class: int | None = None,
    below: float | None = None,
    share: float = 0.1,
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> "WithImagesBeside":
    """Real images in the student's batches beside a source's own: for analysis, not data-free.

    Qimera's table 1 asks in this way whether images near the boundaries between classes are what
    generated ones lack (arXiv:2111.02625; the share of a batch is not published).

    Args:
        source: Makes the other images.
        images: Real ones with labels, in the teacher's normalised units.
        teacher: The network whose confidence decides.
        choose: ``confusing``, ``unconfusing`` (as many others, the control) or ``all``.
        per_class: Most confusing images of one class.
        below: Confidence below which an image is confusing. Where neither is given both are as
            published, 15 and 0.25; where one is given, the other one sets no limit.
        share: Of every batch.
        seed: Of the control and of the order.
        monitor: Hears of progress, and how many images were chosen.

    Raises:
        ImagesError: If there are no labels, or no image is chosen.
        RecipeError: If ``choose`` is none of these.
    """
    from emptyset.evaluate.confusing_images import BELOW, PER_CLASS, confusing_images
    from emptyset.images.images_beside import WithImagesBeside

    if choose not in CHOICES:
        raise RecipeError(f"'choose' must be one of {', '.join(CHOICES)}. Got '{choose}'.")
    if per_class is None and below is None:
        per_class, below = PER_CLASS, BELOW
    told = f"all {len(images)}"
    if choose != "all":
        found = confusing_images(
            teacher.module, images, seed=seed, per_class=per_class, below=below, monitor=monitor
        )
        chosen = list(found.confusing if choose == "confusing" else found.unconfusing)
        if not chosen:
            raise ImagesError(
                f"The teacher is surer than {below} of all {len(images)} images, so none is "
                "confusing. Raise below, or give per_class alone: then the least sure are taken."
            )
        told = f"{len(chosen)} {choose} of {len(images)}"
        images = images.subset(torch.tensor(chosen))
    monitor.note(f"{told} real images stand in the batches: for analysis, not data-free.")
    classes = class_count(teacher, "images beside a source")
    return WithImagesBeside(source, images, classes=classes, share=share, seed=seed)


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

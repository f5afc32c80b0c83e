"""Generators beside the data flow: made for a teacher, trained with a student, drawn from later.

Plain functions, each usable alone. Nothing here knows recipes, run folders or screens.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emptyset import measurement
from emptyset.errors import ImagesError, RecipeError, UnknownNameError
from emptyset.images.image_set import ImageSet
from emptyset.images.preprocessing import other_constants
from emptyset.inversion.labels import class_count
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import sources
from emptyset.settings import checked_config
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.generators.generator_source import GeneratorSource
    from emptyset.images.folder import LazyImages
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
        ImagesError: If the file cannot be read, is damaged, or belongs to another teacher.
        UnsupportedModelError: If the teacher lacks what the method needs.
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
    if (other := other_constants(card, teacher.input)) is not None:
        name, before, now = other
        raise ImagesError(
            f"{path}: was trained for this teacher with {name} {before}, and here it is {now}, so "
            f"its images would have other colours. Give the same --{name} as in the run that wrote "
            "it."
        )
    try:
        made = source(teacher, card["method"], seed=card["seed"], **card["settings"])
        made.load_network(network, card)
    except (RecipeError, UnknownNameError, ImagesError) as error:
        raise ImagesError(f"{path}: {error}") from error
    return made


def with_real_images(
    source: "LiveSource",
    images: "ImageSet | LazyImages",
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
        images: Real ones with labels, in the teacher's normalised units; of a stream only the
            chosen ones are held in memory.
        teacher: The network whose confidence decides.
        choose: ``confusing``, ``unconfusing`` (as many others, the control) or ``all``.
        per_class: Most confusing images of one class.
        below: Confidence below which an image is confusing. Where neither is given both are as
            published, 15 and 0.25; where one is given, the other one sets no limit.
        share: Of every batch.
        seed: Of the control and of the order.
        monitor: Hears of progress, and how many images were chosen.

    Raises:
        ImagesError: If there are no labels, one is no class of the teacher, or no image is chosen.
        RecipeError: If ``choose`` is none of these, limits are given that choose nothing, or the
            source learns from the very batches that the student learns from.
    """
    from emptyset.images.images_beside import WithImagesBeside

    require_choice(source, choose, per_class, below)
    classes, about = class_count(teacher, "images beside a source"), dict[str, Any]()
    told = f"all {len(images):,}"
    if choose != "all":
        chosen, about = _chosen(images, teacher, choose, (per_class, below), seed, monitor)
        told = f"{len(chosen):,} {choose} of {len(images):,}"
        images = _subset(images, torch.tensor(chosen))
    shown = images if isinstance(images, ImageSet) else images.image_set()
    short = about.get("short", [])
    lack = f" Of {len(short)} classes there are fewer than wanted." if short else ""
    monitor.note(f"{told} real images stand in the batches: for analysis, not data-free.{lack}")
    return WithImagesBeside(source, shown, classes=classes, share=share, seed=seed, about=about)


def require_choice(
    source: "LiveSource", choose: str, per_class: int | None, below: float | None
) -> None:
    """Refuse what ``with_real_images`` refuses before it looks at an image.

    Raises:
        RecipeError: See there.
    """
    if choose not in CHOICES:
        raise RecipeError(f"'choose' must be one of {', '.join(CHOICES)}. Got '{choose}'.")
    if choose == "all" and (per_class is not None or below is not None):
        raise RecipeError("'choose: all' takes every image. Leave out 'per_class' and 'below'.")
    method = getattr(source, "method", None)
    if method is not None and method.needs_student and not method.student_steps:
        raise RecipeError(
            f"'{method.name}' learns from the same batches as the student, so no real images can "
            "stand in them. Take gdfq, qimera, autorecon, texq or zaq."
        )


def _chosen(
    images: "ImageSet | LazyImages",
    teacher: Teacher,
    choose: str,
    limits: tuple[int | None, float | None],
    seed: int,
    monitor: Monitor,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Indices of the chosen images, and what every class gave."""
    from emptyset.evaluate.confusing_images import BELOW, PER_CLASS, confusing_images

    per_class, below = (PER_CLASS, BELOW) if limits == (None, None) else limits
    found = confusing_images(
        measurement.predictor(teacher),
        images,
        seed=seed,
        per_class=per_class,
        below=below,
        control=choose == "unconfusing",
        batch_size=measurement.batch_size_for(teacher.input.shape),
        monitor=monitor,
    )
    chosen = found.confusing if choose == "confusing" else found.unconfusing
    if not chosen:
        raise ImagesError(
            f"The teacher is surer than {below} of all {len(images)} images, so none is "
            "confusing. Raise below, or give per_class alone: then the least sure are taken."
        )
    classes = [asdict(about) for about in found.classes]
    return chosen, {"chosen": choose, "short": found.short(), "classes": classes}


def _subset(images: "ImageSet | LazyImages", indices: Tensor) -> "ImageSet | LazyImages":
    if isinstance(images, ImageSet):
        return images.subset(indices)
    return replace(images, indices=images.indices[indices])


def draw_to(
    folder: Path | str,
    source: "GeneratorSource",
    count: int,
    *,
    seed: int = 0,
    per_shard: int | None = None,
) -> dict[str, Any]:
    """Store images of a trained generator while they are made; memory does not grow with them.

    Args:
        folder: Where ``images.safetensors`` and ``card.json`` go.
        source: From ``generator_from``, or one that was trained.
        count: At least 2.
        seed: Of labels and noise.
        per_shard: Images of one WebDataset shard, ``images-000000.tar`` and on; None: one file.

    Returns:
        What the card holds: ``count``, ``shape``, ``units``, ``digest``, ``history``.

    Raises:
        ImagesError: If the count is below 2, or ``per_shard`` below 1.
    """
    from emptyset.images.shard_writer import writer_for

    with writer_for(Path(folder), count, per_shard=per_shard) as writer:
        for batch in source.draws(count, seed=seed):
            writer.add(batch)
        return writer.finish((source.card() | {"count": count, "draw_seed": seed},))

"""What the report tells of a generator that was trained beside the student."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from emptyset import generation, measurement
from emptyset.errors import ImagesError
from emptyset.job.context import RunContext
from emptyset.job.from_recipe import LARGE_IMAGE_PIXELS
from emptyset.job.held_out import first
from emptyset.job.image_stages import KnownImages
from emptyset.run_folder import GENERATOR, IMAGES, RunFolder, Workplace

if TYPE_CHECKING:
    from emptyset.evaluate.pictured_samples import GeneratorPictures

STAGE = "class_boundary"
PICTURES = f"{IMAGES}/generator_pictures.safetensors"
# What a run looks at by itself; fewer where `evaluate.quality_images` is small.
PAIRS, REAL, PER_CLASS, SUPERPOSED = 45, 1024, 100, 900
# Of images that cost much: a network for them sees hundreds instead of ten thousands.
LARGE_PAIRS, LARGE_REAL, LARGE_PER_CLASS, LARGE_SUPERPOSED = 5, 64, 8, 45
FEWEST_PER_CLASS = 8


def measured_generator(
    context: RunContext, fitted: KnownImages, judged: KnownImages | None
) -> None:
    """Class boundaries and pictures of the recipe's trained source, as a stage of the run.

    Nothing without a source, or where ``evaluate.quality_images`` is 0. The stage's result is
    ``{"boundary": ...}``: what ``ClassBoundary.to_json`` gives, or None where it has no labels.

    Args:
        context: The run, its student finished.
        fitted: The images that the student was fitted to.
        judged: Those it was judged on, if there were any.
    """
    if context.recipe.source is None or not context.recipe.evaluate.quality_images:
        if context.folder.record(STAGE) is not None:
            # Of the recipe that was here before.
            context.folder.discard("run", STAGE)
        return
    real = next((known for known in (judged, fitted) if known is not None and known.real), None)
    inputs = [
        STAGE,
        context.file_digest("student", GENERATOR),
        context.teacher_identity(),
        context.recipe.seed,
        context.recipe.evaluate.quality_images,
        real.identity if real else None,
    ]
    context.run(STAGE, inputs, lambda at: _measured(context, real, at))


def generator_pictures_of(folder: RunFolder) -> "GeneratorPictures | None":
    """The pictures that ``measured_generator`` gathered, if it did.

    Raises:
        RunFolderError: If it did, but their file is missing or not readable.
    """
    from emptyset.evaluate.pictured_samples import GeneratorPictures

    if folder.record(STAGE) is None:
        return None
    return GeneratorPictures.load(folder.path / PICTURES)


def _measured(context: RunContext, real: KnownImages | None, at: Workplace) -> dict[str, Any]:
    from emptyset.evaluate.class_boundary import BoundarySettings, class_boundary
    from emptyset.evaluate.generator_pictures import PictureSettings, generator_pictures

    source = generation.generator_from(context.folder.path / GENERATOR, context.teacher)
    size = measurement.batch_size_for(context.teacher.input.shape)
    pairs, per_class, superposed, most = _amounts(context)
    boundary: dict[str, Any] | None = None
    why: tuple[str, ...] = ()
    if source.method.labelled:
        try:
            boundary = class_boundary(
                source,
                context.teacher,
                BoundarySettings(pairs=pairs),
                seed=context.recipe.seed,
                batch_size=size,
                monitor=at.monitor,
            ).to_json()
        except ImagesError as error:
            # A generator that failed is no reason to withhold the student and its report.
            why = (f"The table of class boundaries: {error}",)
    pictures = generator_pictures(
        source,
        context.teacher,
        PictureSettings(per_class=per_class, superposed=superposed),
        real=first(real.images, most) if real else None,
        seed=context.recipe.seed,
        batch_size=size,
        monitor=at.monitor,
    )
    replace(pictures, missing=(*pictures.missing, *why)).save(at.aside / PICTURES)
    return {"boundary": boundary}


def _amounts(context: RunContext) -> tuple[int, int, int, int]:
    """Pairs, images of a class, images between classes, and real images that are looked at."""
    wanted = context.recipe.evaluate.quality_images
    most = (PAIRS, PER_CLASS, SUPERPOSED, REAL)
    _, height, width = context.teacher.input.shape
    if height * width > LARGE_IMAGE_PIXELS:
        most = (LARGE_PAIRS, LARGE_PER_CLASS, LARGE_SUPERPOSED, LARGE_REAL)
    pairs, per_class, superposed, real = most
    return (
        min(wanted, pairs),
        max(FEWEST_PER_CLASS, min(wanted, per_class)),
        min(4 * wanted, superposed),
        min(4 * wanted, real),
    )

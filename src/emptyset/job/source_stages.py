"""What a recipe with a source adds: the source in the student's stage, and its images after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset import generation, pipeline
from emptyset.disk import fingerprint
from emptyset.errors import ImagesError
from emptyset.generators.generator_file import save_generator
from emptyset.images.image_set import ImageSet
from emptyset.images.images_beside import WithImagesBeside
from emptyset.job.context import RunContext
from emptyset.job.from_recipe import labelled_path
from emptyset.job.image_stages import JUDGED, KnownImages, judged_images, probes_of
from emptyset.measurement import has_labels
from emptyset.monitor import Monitor
from emptyset.quantizers.bits import Bits
from emptyset.recipe import Recipe
from emptyset.recipe_with_source import draws_images_last, takes_source
from emptyset.refiners.finite_losses import DivergedError
from emptyset.registry import refiners
from emptyset.run_folder import GENERATOR, IMAGES, LAST_GOOD, Workplace
from emptyset.settings import checked_config

if TYPE_CHECKING:
    from emptyset.graph.student import Student

_STATE = "trained-source"
# Added to the run's seed for the judged images. A source learns from seed * 1,000,003 + 1 and on,
# so neither its lessons nor the fitted images are drawn from the same numbers.
OTHER_DRAWS = 500_009


def source_of(context: RunContext) -> Any:
    """The recipe's source, fresh."""
    section = context.recipe.source
    assert section is not None
    return generation.source(
        context.teacher, section.method, seed=context.recipe.seed, **section.settings()
    )


def beside_of(context: RunContext, source: Any, monitor: Monitor) -> Any:
    """The source as the student sees it: with real images in its batches where asked for."""
    section = context.recipe.source
    if section is None or section.beside is None:
        return source
    return generation.with_real_images(
        source,
        pipeline.images_from(section.beside.images, context.teacher),
        context.teacher,
        seed=context.recipe.seed,
        monitor=monitor,
        **section.beside.model_dump(exclude={"images"}),
    )


def require_source(context: RunContext) -> None:
    """Refuse a source, and real images beside it, before time goes into anything else.

    Raises:
        ImagesError: If real images are not there or have no labels, or labels are learnt from that
            the source does not have.
        RecipeError: If a setting is wrong, or the student would learn nothing.
        UnsupportedModelError: If the teacher lacks what the source needs.
    """
    recipe, section = context.recipe, context.recipe.source
    if section is None:
        return
    beside = section.beside
    if beside is not None and not Path(beside.images).exists():
        raise ImagesError(f"source.beside.images: there is no file or folder {beside.images}.")
    source = source_of(context)
    for one in recipe.refine:
        if takes_source(one.method, one.settings()):
            entry = refiners.get(one.method)
            made = entry.make(checked_config(entry.config, one.settings(), where=(one.method,)))
            if (fits := getattr(made, "require_fit", None)) is not None:
                fits(Bits.parse(recipe.plan.bits), source)
    if beside is not None:
        generation.require_choice(source, beside.choose, beside.per_class, beside.below)
        images = pipeline.images_from(beside.images, context.teacher)
        if not has_labels(images):
            raise ImagesError(
                f"source.beside.images: {beside.images} has no labels, and the student learns "
                "them. Give a folder with one subfolder per class, or an npz file with labels."
            )


def record_beside(source: Any, student: "Student") -> None:
    """Tell in the metrics how many real images stood beside the source's."""
    if isinstance(source, WithImagesBeside):
        student.records.append({"refiner": "distill", **source.about})


def source_identity(recipe: Recipe) -> list[Any]:
    """What tells the source from others, and the real images in its batches; none: nothing."""
    section = recipe.source
    if section is None:
        return []
    found: list[Any] = [section.model_dump(exclude={"count", "beside"})]
    if section.beside is not None:
        path = Path(section.beside.images)
        found.append([section.beside.model_dump(exclude={"images"}), fingerprint(path)])
    return found


def keep_trained(source: Any, monitor: Monitor) -> None:
    """Keep the trained source beside the refined student."""
    monitor.keep(_STATE, source.state, final=True)


def restore_trained(source: Any, monitor: Monitor) -> None:
    """Take over what ``keep_trained`` kept before a kill."""
    state = monitor.restore(_STATE)
    assert state is not None
    source.load_state(state)


def write_generator(source: Any, at: Workplace) -> None:
    """The trained generator is an asset of the run."""
    save_generator(source, at.aside / GENERATOR)


@contextmanager
def keeping_last_good(context: RunContext, student: "Student", monitor: Monitor) -> Iterator[None]:
    """Inside, training that diverges leaves the last good student in the run folder.

    Raises:
        DivergedError: Also naming the file.
    """
    try:
        yield
    except DivergedError as error:
        if not error.kept:
            raise
        path = context.folder.path / LAST_GOOD
        student.save(path)
        # Progress, so that the folder stays this recipe's.
        monitor.keep(LAST_GOOD, student.state_dict, final=True)
        raise DivergedError(f"{error} It is in {path}.", kept=True) from error


def before_drawing(context: RunContext) -> KnownImages:
    """Stands for the images until the trained source makes them; nothing is fitted to it."""
    section = context.recipe.source
    assert section is not None
    probes = probes_of(context.recipe, context.teacher.input)
    return KnownImages(probes, ["source", section.method], section.method, probes=True)


def drawn_images(context: RunContext) -> tuple[KnownImages, KnownImages | None]:
    """Images that the trained generator makes: the run's own, and those it is judged on."""
    recipe, section = context.recipe, context.recipe.source
    assert section is not None
    fitted = _drawn(context, "images", section.count, recipe.seed, IMAGES)
    if labelled_path(recipe) is not None:
        return fitted, judged_images(context, fitted)
    count = min(recipe.evaluate.count, section.count)
    other = _drawn(context, "judged", count, recipe.seed + OTHER_DRAWS, JUDGED)
    described = f"{section.method} images drawn with another seed, not used to quantize"
    return fitted, KnownImages(other.images, other.identity, described)


def _drawn(context: RunContext, stage: str, count: int, seed: int, place: str) -> KnownImages:
    section = context.recipe.source
    assert section is not None
    inputs = [stage, "drawn", context.file_digest("student", GENERATOR), count, seed, place]

    def work(at: Workplace) -> dict[str, Any]:
        source = generation.generator_from(context.folder.path / GENERATOR, context.teacher)
        card = generation.draw_to(at.aside / place, source, count, seed=seed)
        return {"count": card["count"], "digest": card["digest"]}

    result = context.run(stage, inputs, work)
    images = ImageSet.load(context.folder.path / place)
    return KnownImages(images, result["digest"], section.method)


def first_images(context: RunContext) -> KnownImages | None:
    """``before_drawing`` where the source makes the run's images at the end, else None."""
    return before_drawing(context) if draws_images_last(dict(context.recipe)) else None

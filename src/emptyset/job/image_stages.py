"""The stages that give images: those the student is fitted to, and those it is judged on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset import measurement, pipeline
from emptyset.disk import fingerprint
from emptyset.errors import ImagesError, RecipeError
from emptyset.images.image_set import ImageSet
from emptyset.images.input_spec import InputSpec
from emptyset.images.no_images import PROBES, gaussian_probes
from emptyset.job.context import RunContext
from emptyset.job.from_recipe import labelled_path
from emptyset.job.held_out import split
from emptyset.recipe import Recipe, SynthesizeSection
from emptyset.recipe_without_images import NONE
from emptyset.run_folder import IMAGES, Workplace

if TYPE_CHECKING:
    from emptyset.images.folder import LazyImages

# Far from every seed that people type, so that the judged images are never the fitted ones.
OTHER_SEED = 1_000_003
BEFORE_SELECTION = f"{IMAGES}/before_selection"
JUDGED = f"{IMAGES}/judged"
# The certificate shows the file batches of one and of several images.
FEWEST = 2
# As many probes as give 256 images of 32 x 32, which is what a certificate looks at.
PIXELS, MOST_PROBES, FEWEST_PROBES = 256 * 32 * 32, 256, 8


@dataclass(frozen=True)
class KnownImages:
    """Images, and what tells them from all others.

    Attributes:
        images: A set in memory, or a stream.
        identity: JSON data that changes when the images do.
        described: Where they come from, in words for the report.
        real: Whether they are photos, or were made from a network.
        probes: Whether they are only for the certificate: nothing is fitted to them.
        labelled: Whether they carry class indices.
    """

    images: "ImageSet | LazyImages"
    identity: Any
    described: str
    real: bool = False
    probes: bool = False

    @property
    def labelled(self) -> bool:
        """Whether every image has a class index."""
        return measurement.has_labels(self.images)


def fitted_images(context: RunContext) -> KnownImages:
    """The images that the student is fitted to: made, or the recipe's; selected where asked."""
    recipe = context.recipe
    if recipe.images is not None:
        _discard_made(context)
    if recipe.images == NONE:
        probes = probes_of(recipe, context.teacher.input)
        return KnownImages(probes, ["none", recipe.seed], PROBES, probes=True)
    if recipe.images is not None:
        found = _given(context, recipe.images)
    else:
        assert recipe.synthesize is not None
        place = BEFORE_SELECTION if recipe.select else IMAGES
        found = _made(context, "images", recipe.synthesize, recipe.seed, place)
    return _selected(context, found) if recipe.select else found


def _discard_made(context: RunContext) -> None:
    """Images that a recipe that was here before had made or chosen are not this one's."""
    stages = ["images", "judged"] + ["select"] * (not context.recipe.select)
    if any(context.folder.record(stage) is not None for stage in stages):
        context.folder.discard("run", "images", "select", "judged", "image_quality")


def _given(context: RunContext, given: str) -> KnownImages:
    recipe = context.recipe
    source = pipeline.images_from(given, context.teacher)
    fitted, _ = split(source, seed=recipe.seed, limit=recipe.count)
    if len(fitted) < FEWEST:
        raise ImagesError(
            f"{given}: {len(fitted)} image to quantize with; at least {FEWEST} are needed: "
            "the certificate shows the file batches of one and of several."
        )
    identity = ["given", fingerprint(Path(given)), recipe.seed, recipe.count]
    return KnownImages(fitted, identity, given, real=_is_real(source))


def _made(
    context: RunContext, stage: str, section: SynthesizeSection, seed: int, place: str
) -> KnownImages:
    inputs = [stage, context.teacher_identity(), section.model_dump(), seed, place]

    def work(at: Workplace) -> dict[str, Any]:
        card = pipeline.synthesize_to(
            at.aside / place,
            context.teacher,
            section.method,
            section.count,
            seed=seed,
            monitor=at.monitor,
            **section.settings(),
        )
        return {"count": card["count"], "digest": card["digest"]}

    result = context.run(stage, inputs, work)
    images = ImageSet.load(context.folder.path / place)
    return KnownImages(images, result["digest"], section.method)


def _selected(context: RunContext, found: KnownImages) -> KnownImages:
    sections = context.recipe.select
    inputs = [
        "select",
        found.identity,
        context.teacher_identity(),
        [section.model_dump() for section in sections],
    ]

    def work(at: Workplace) -> dict[str, Any]:
        chosen = found.images if isinstance(found.images, ImageSet) else found.images.image_set()
        for section in sections:
            chosen = pipeline.select(chosen, context.teacher, section.method, **section.settings())
        chosen.save(at.aside / IMAGES)
        return {"count": len(chosen), "of": len(found.images), "digest": chosen.digest()}

    result = context.run("select", inputs, work)
    images = ImageSet.load(context.folder.path / IMAGES)
    return KnownImages(images, result["digest"], found.described, found.real)


def refuse_unjudged(context: RunContext) -> None:
    """Refuse a limit on what cannot be measured.

    Raises:
        RecipeError: If agreement is asked for, and there is no image to measure it on.
    """
    recipe = context.recipe
    least = recipe.evaluate.min_agreement
    if recipe.images == NONE and labelled_path(recipe) is None and least is not None:
        raise RecipeError(
            "evaluate.min_agreement: without any image, agreement with the teacher cannot be "
            "measured. Name some to judge on with evaluate.images, or leave --min-agreement out."
        )


def probes_of(recipe: Recipe, spec: InputSpec) -> ImageSet:
    """What the certificate is shown in a run without images."""
    _, height, width = spec.shape
    asked = recipe.export.certificate_images
    return gaussian_probes(
        spec, asked or max(FEWEST_PROBES, min(MOST_PROBES, PIXELS // (height * width))),
        seed=recipe.seed,
    )  # fmt: skip


def judged_images(context: RunContext, fitted: KnownImages) -> KnownImages | None:
    """Images that the student is not fitted to: labelled ones where there are any.

    None where there is no image at all: then nothing is known of what was lost.
    """
    recipe = context.recipe
    path = labelled_path(recipe)
    if path is not None:
        described = (
            f"images of {recipe.evaluate.images}"
            if recipe.evaluate.images
            else "held-out scans that ship with the package, seen by neither teacher nor quantizer"
        )
        images = pipeline.images_from(path, context.teacher)
        return KnownImages(images, fingerprint(path), described, real=_is_real(images))
    if recipe.images == NONE:
        return None
    if recipe.images is not None:
        source = pipeline.images_from(recipe.images, context.teacher)
        _, rest = split(source, seed=recipe.seed, limit=recipe.count)
        if rest is None:
            described = f"the same few images of {recipe.images} that were used to quantize"
            return KnownImages(fitted.images, ["same", fitted.identity], described, fitted.real)
        described = f"the part of {recipe.images} that was not used to quantize"
        return KnownImages(rest, ["rest", fitted.identity], described, _is_real(rest))
    section = recipe.synthesize
    assert section is not None
    fewer = section.model_copy(update={"count": min(recipe.evaluate.count, section.count)})
    made = _made(context, "judged", fewer, recipe.seed + OTHER_SEED, JUDGED)
    described = f"{section.method} images made with another seed, not used to quantize"
    return KnownImages(made.images, made.identity, described)


def _is_real(images: "LazyImages") -> bool:
    """Photos and arrays are; a stored image set was made by a synthesizer."""
    return images.layout != "image set"

"""What a recipe's sections stand for: a teacher, a student, the images to judge on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from emptyset import pipeline
from emptyset.recipe import Recipe
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.graph.student import Student

EMBEDDED = "embedded:"
# One forward per layer: large images are few, so that the layer table stays affordable.
LARGE_IMAGE_PIXELS = 96 * 96
MOST_LARGE_IMAGES = 16


def load_from(recipe: Recipe, *, allow_pickle: bool = False, pretrained: bool = True) -> Teacher:
    """The recipe's teacher, on the recipe's device.

    Args:
        recipe: Its ``teacher`` and ``device`` are read.
        allow_pickle: Run code that a checkpoint's pickle holds.
        pretrained: False builds the architecture only.
    """
    section = recipe.teacher
    return pipeline.load(
        section.name,
        model=section.model,
        model_args=section.model_args,
        input_shape=section.input,
        mean=section.mean,
        std=section.std,
        weights=Path(section.weights) if section.weights else None,
        classes=Path(section.classes) if section.classes else None,
        pretrained=pretrained,
        allow_pickle=allow_pickle,
        device=recipe.device,
    )


def prepare_from(
    recipe: Recipe, teacher: Teacher, chosen: Mapping[str, str] | None = None
) -> "Student":
    """The recipe's student of this teacher, ranges unset.

    Args:
        recipe: Its ``plan`` is read.
        teacher: The network.
        chosen: Overrides that mixed precision decided, of layers that the recipe's own leave open.
    """
    plan = recipe.plan
    return pipeline.prepare(
        teacher,
        plan.bits,
        plan=plan.name,
        batch_norm=plan.batch_norm,
        overrides={**(chosen or {}), **plan.overrides} or None,
        **plan.settings(),
    )


def labelled_path(recipe: Recipe) -> Path | None:
    """Images to judge on that exist already: the recipe's, or those shipped with a teacher."""
    if recipe.evaluate.images is not None:
        return Path(recipe.evaluate.images)
    if recipe.teacher.name.startswith(EMBEDDED):
        from emptyset.teachers.embedded import held_out_images_path

        return held_out_images_path()
    return None


def layer_image_count(recipe: Recipe, teacher: Teacher) -> int:
    """How many images the layer table is measured on."""
    _, height, width = teacher.input.shape
    wanted = recipe.evaluate.layer_images
    return wanted if height * width <= LARGE_IMAGE_PIXELS else min(wanted, MOST_LARGE_IMAGES)

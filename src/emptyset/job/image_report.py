"""What the report tells of the images: how good they are, and what they look like."""

from typing import Any

import torch

from emptyset import measurement
from emptyset.job.context import RunContext
from emptyset.job.from_recipe import LARGE_IMAGE_PIXELS
from emptyset.job.held_out import first
from emptyset.job.image_stages import KnownImages
from emptyset.report.contact_sheet import ContactSheet, Pictures, contact_sheet
from emptyset.run_folder import Workplace

MOST_LARGE_IMAGES = 64
FEWEST_IMAGES = 2


def real_images(fitted: KnownImages, judged: KnownImages | None) -> KnownImages | None:
    """Real images that stand beside the fitted ones: the judged ones, where they are others."""
    if judged is None or not judged.real or judged.images is fitted.images:
        return None
    return judged


def measured_quality(
    context: RunContext, fitted: KnownImages, judged: KnownImages | None
) -> dict[str, Any]:
    """Quality of the fitted images and, measured alike, of real ones where there are any.

    Args:
        context: The run.
        fitted: The images that the student was fitted to.
        judged: Those it was judged on, if there were any.

    Returns:
        ``images`` and ``real``, each as ``ImageQuality.to_json`` gives it or None; nothing where
        the recipe asks for none.
    """
    real = real_images(fitted, judged)
    count = _count(context, fitted, real)
    if fitted.probes or count < FEWEST_IMAGES:
        return {}
    inputs = [
        "image_quality",
        fitted.identity,
        real.identity if real else None,
        context.teacher_identity(),
        count,
    ]

    def work(at: Workplace) -> dict[str, Any]:
        from emptyset.evaluate.image_quality import compared_quality

        found, beside = compared_quality(
            first(fitted.images, count),
            first(real.images, count) if real else None,
            context.teacher,
            batch_size=measurement.batch_size_for(context.teacher.input.shape),
            monitor=at.monitor,
        )
        return {"images": found.to_json(), "real": beside.to_json() if beside else None}

    return context.run("image_quality", inputs, work)


def _count(context: RunContext, fitted: KnownImages, real: KnownImages | None) -> int:
    """Images of each set; equally many, since the distance depends on the batch."""
    _, height, width = context.teacher.input.shape
    wanted = context.recipe.evaluate.quality_images
    if height * width > LARGE_IMAGE_PIXELS:
        wanted = min(wanted, MOST_LARGE_IMAGES)
    return min(wanted, *(len(known.images) for known in (fitted, real) if known is not None))


def shown_images(
    context: RunContext, fitted: KnownImages, judged: KnownImages | None
) -> ContactSheet:
    """The contact sheet of a run; empty where no image was used."""
    if fitted.probes:
        none = Pictures(
            torch.empty(0, 1, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.long)
        )
        return ContactSheet(none, 0)
    real = real_images(fitted, judged)
    return contact_sheet(
        fitted.images,
        context.teacher.input,
        real=real.images if real else None,
        class_names=context.teacher.class_names,
    )

"""Which images the students of a comparison are judged on."""

from pathlib import Path

import torch

from emptyset import measurement, pipeline
from emptyset.comparison.rows import Surroundings
from emptyset.disk import fingerprint
from emptyset.errors import ImagesError
from emptyset.images.image_set import ImageSet
from emptyset.job.from_recipe import labelled_path
from emptyset.job.held_out import FEWEST_TO_SPLIT, split
from emptyset.job.image_stages import KnownImages
from emptyset.recipe import Recipe


def given_judges(at: Surroundings, recipe: Recipe) -> KnownImages | None:
    """Images that exist already: labelled ones, a part of the real ones; None where there are none.

    Args:
        at: What all rows share.
        recipe: Of any row; it tells which images ship with the teacher.

    Raises:
        ImagesError: If there are too few real images to keep some apart.
    """
    comparison = at.comparison
    path = Path(comparison.labelled) if comparison.labelled else labelled_path(recipe)
    if path is not None:
        images = pipeline.images_from(path, at.teacher)
        described = (
            comparison.labelled
            if comparison.labelled
            else "held-out scans that ship with the package, seen by neither teacher nor quantizer"
        )
        if comparison.labelled and not measurement.has_labels(images):
            raise ImagesError(
                f"{path}: holds no labels. Give one subfolder per class, or an npz with 'labels'; "
                "images without labels can be given with --real."
            )
        return KnownImages(images, fingerprint(path), described, real=True)
    if comparison.real is None:
        return None
    source = pipeline.images_from(comparison.real, at.teacher)
    _, rest = split(source, seed=comparison.seed)
    if rest is None:
        raise ImagesError(
            f"{comparison.real}: {len(source)} images are too few to keep some apart to judge on. "
            f"Give at least {FEWEST_TO_SPLIT}, or others with --labelled."
        )
    identity = ["rest", fingerprint(Path(comparison.real)), comparison.seed]
    described = f"the part of {comparison.real} that no student was fitted to"
    return KnownImages(rest, identity, described, real=True)


def pooled(parts: list[KnownImages]) -> KnownImages:
    """Images that every method made as many of, with another seed: nobody judges his own work."""
    images = torch.cat([_images(part) for part in parts])
    return KnownImages(
        ImageSet(images),
        ["pooled", [part.identity for part in parts]],
        "made by all methods alike with another seed, used to fit nobody",
    )


def _images(part: KnownImages) -> torch.Tensor:
    assert isinstance(part.images, ImageSet)
    return part.images.images

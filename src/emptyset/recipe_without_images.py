"""Recipes with ``images: none``: what they do, and what they cannot do."""

from collections.abc import Mapping, Sequence
from typing import Any

from emptyset.errors import RecipeError
from emptyset.registry import refiners
from emptyset.settings import Places, checked_config, complaint

NONE = "none"
# Measured in benchmarks/results/reconstruction_no_images.md.
DATA_FREE_REFINERS: tuple[dict[str, Any], ...] = (
    {"method": "equalize", "balance": "activations"},
    {"method": "calibrate", "activation_values": "batch_norm"},
    {"method": "bias_correction", "statistics": "analytic"},
)


_NO_PLACE = {
    "mixed_precision": "measures layers on images. Name a method such as `zeroq`, or a folder of "
    "images.",
    "count": "`images: none` has none to count.",
    "select": "`images: none` has none to select from. Remove the section.",
}


def require_no_need(
    sections: Mapping[str, object],
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    places: Places,
) -> None:
    """Refuse what needs images in a recipe that has none; the settings were checked before.

    Args:
        sections: The recipe's other sections by name; what is empty or None is not there.
        methods: Refiners with their settings, in order.
        places: Where each value was written, for messages.

    Raises:
        RecipeError: Naming the section and what to write instead.
    """
    for name, text in _NO_PLACE.items():
        if sections.get(name):
            raise RecipeError(complaint((name,), places, text))
    for index, (name, settings) in enumerate(methods):
        entry = refiners.get(name)
        made = entry.make(checked_config(entry.config, settings))
        needs_images = getattr(made, "needs_images", None)
        if needs_images is None or needs_images():
            text = (
                f"'{name}' as it is set needs images, and this recipe has `images: none`. "
                f"Without images: {', '.join(_without_images())}."
            )
            raise RecipeError(complaint(("refine", index, "method"), places, text))


def _without_images() -> list[str]:
    """Refiners that need no images, with the setting that makes it so."""
    found = []
    for entry in refiners.entries():
        needs_images = getattr(entry.make(entry.config()), "needs_images", None)
        if needs_images is not None and not needs_images():
            found.append(entry.name)
    return [*found, "calibrate with activation_values batch_norm"]

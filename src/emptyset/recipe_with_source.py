"""Recipes with a ``source``: a generator that is trained beside the student by one refiner."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emptyset.errors import RecipeError
from emptyset.recipe_without_images import NONE
from emptyset.registry import refiners
from emptyset.settings import Places, checked_config, complaint

SOURCE_REFINERS: tuple[dict[str, Any], ...] = ({"method": "distill"},)
_INSTEAD = "this recipe has none before its source is trained. Add `synthesize` or `images`."


class BesideSection(BaseModel):
    """Real images in the student's batches beside the source's: for analysis, not data-free.

    Attributes:
        images: Folder with one subfolder per class, npz file or stored image set; with labels.
        choose: ``confusing``: those that the teacher is least sure of, class by class;
            ``unconfusing``: as many others, the control; ``all``.
        per_class: Most confusing images of one class.
        below: Confidence below which an image is confusing. Where neither is given both are as
            published, 15 and 0.25; where one is given, the other one sets no limit.
        share: Of every batch.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    images: str
    choose: Literal["confusing", "unconfusing", "all"] = "confusing"
    per_class: Annotated[int | None, Field(ge=1)] = None
    below: Annotated[float | None, Field(gt=0, le=1)] = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1


def takes_source(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the refiner trains the source beside the student; its settings were checked."""
    made = _made(name, settings)
    return bool(getattr(made, "takes_source", None) and made.takes_source())


def draws_images_last(sections: Mapping[str, object]) -> bool:
    """Whether the run's images are those that the trained source makes at the end.

    Args:
        sections: The recipe's sections by name; what is None is not there.
    """
    others = sections.get("images") or sections.get("synthesize")
    return sections.get("source") is not None and others is None


def require_use_of_source(
    sections: Mapping[str, object],
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    places: Places,
) -> None:
    """Refuse a source that nothing or too much learns from; settings were checked before.

    Args:
        sections: The recipe's sections by name; what is empty or None is not there.
        methods: Refiners with their settings, in order.
        places: Where each value was written, for messages.

    Raises:
        RecipeError: Naming the section and what to write instead.
    """
    if sections.get("source") is None:
        return
    if sections.get("images") == NONE:
        text = "`images: none` and a `source`, which makes images, exclude each other."
        raise RecipeError(complaint(("source",), places, text))
    takers = [name for name, settings in methods if takes_source(name, settings)]
    if len(takers) != 1:
        found = f"{len(takers)} such refiners" if takers else "no such refiner"
        text = f"is trained beside the student by one refiner, `distill`. Got {found}."
        raise RecipeError(complaint(("source",), places, text))
    if draws_images_last(sections):
        _require_no_images_before(sections, methods, places)


def _require_no_images_before(
    sections: Mapping[str, object],
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    places: Places,
) -> None:
    """Everything but the source's own refiner must do without images."""
    for name in ("mixed_precision", "select"):
        if sections.get(name):
            raise RecipeError(complaint((name,), places, f"needs images, and {_INSTEAD}"))
    for index, (name, settings) in enumerate(methods):
        needs_images = getattr(_made(name, settings), "needs_images", None)
        if not takes_source(name, settings) and (needs_images is None or needs_images()):
            text = f"'{name}' as it is set needs images, and {_INSTEAD}"
            raise RecipeError(complaint(("refine", index, "method"), places, text))


def _made(name: str, settings: Mapping[str, Any]) -> Any:
    entry = refiners.get(name)
    return entry.make(checked_config(entry.config, settings))

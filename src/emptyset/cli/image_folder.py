"""Folders of stored images, as `synthesize` and `select` write them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset.cli.output import show_json
from emptyset.errors import RunFolderError

if TYPE_CHECKING:
    from emptyset.images.image_set import ImageSet


def already_there(folder: Path, *, overwrite: bool) -> bool:
    """Whether the folder holds an image set that may not be replaced.

    Raises:
        RunFolderError: If it holds a run, which would be none any more.
    """
    from emptyset.images.image_set import CARD_NAME
    from emptyset.run_folder import RECIPE

    if (folder / RECIPE).is_file():
        raise RunFolderError(
            f"{folder}: holds a run ({RECIPE}); images beside its files would be taken for it. "
            "Give another folder with --out."
        )
    return (folder / CARD_NAME).is_file() and not overwrite


@contextmanager
def leaving_nothing_empty(partial: Path, folder: Path) -> Iterator[None]:
    """A command that failed before it kept anything leaves no folder behind."""
    try:
        yield
    finally:
        with suppress(OSError):
            for path in (partial, partial.parent, folder):
                path.rmdir()


def show_images(images: "ImageSet", folder: Path, *, as_json: bool) -> None:
    """Say what was written."""
    told = {"count": len(images), "digest": images.digest(), "history": list(images.history)}
    show_card(told, folder, as_json=as_json)


def show_card(card: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """Say what was written, from its card."""
    if as_json:
        told = {name: card[name] for name in ("count", "digest", "history")}
        show_json({"folder": str(folder), **told})
        return
    print(f"{card['count']} images in {folder}")

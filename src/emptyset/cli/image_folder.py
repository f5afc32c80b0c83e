"""Folders of stored images, as `synthesize` and `select` write them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from emptyset.cli.output import show_json

if TYPE_CHECKING:
    from emptyset.images.image_set import ImageSet


def already_there(folder: Path, *, overwrite: bool) -> bool:
    """Whether the folder holds an image set that may not be replaced."""
    from emptyset.images.image_set import CARD_NAME

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
    if as_json:
        show_json(
            {
                "folder": str(folder),
                "count": len(images),
                "digest": images.digest(),
                "history": list(images.history),
            }
        )
        return
    print(f"{len(images)} images in {folder}")

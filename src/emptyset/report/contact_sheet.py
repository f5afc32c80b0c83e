"""A contact sheet: small pictures of the images, class by class, real ones beside them.

The sheet is chosen and shrunk once, and kept as one file of the run: the page can be written again
when the images, or the photos of the user, are long gone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emptyset.errors import RunFolderError
from emptyset.evaluate.small_pixels import small_pixels
from emptyset.images.folder import LazyImages, spread
from emptyset.images.image_set import ImageSet
from emptyset.report.png import data_address
from emptyset.teachers.teacher import InputSpec

LARGEST_TILE = 72
# Of the images and, as many again, of the real ones; so that the page stays a few megabytes.
MOST_TILES = 96
MOST_CLASSES = 20
MOST_OF_A_CLASS = 8
UNKNOWN = -1


@dataclass(frozen=True)
class Pictures:
    """Small pictures of one kind.

    Attributes:
        pixels: ``(M, C, h, w)`` uint8.
        classes: ``(M,)`` class index, −1 where it is not known.
    """

    pixels: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Group:
    """One class of the sheet, or all images where classes are not known.

    Attributes:
        name: Of the class; empty where classes are not known.
        images: ``data:`` addresses.
        real: The same of real images.
    """

    name: str
    images: list[str]
    real: list[str]


@dataclass(frozen=True)
class ContactSheet:
    """What the page shows of the images.

    Attributes:
        images: Of the set.
        count: Images of the whole set.
        real: Real images to compare with, or None.
        class_names: Name per class that is shown; others are shown by their number.
    """

    images: Pictures
    count: int
    real: Pictures | None = None
    class_names: dict[int, str] = field(default_factory=dict)

    def groups(self) -> list[Group]:
        """Class by class, in the order of their indices; unlabelled images in one group."""
        known = sorted(set(self.images.classes.tolist()))
        # Without classes on the one side there is nothing to pair the other side's with.
        paired = known != [UNKNOWN] and (
            self.real is None or UNKNOWN not in self.real.classes.tolist()
        )
        if not paired:
            return [Group("", _addresses(self.images), _addresses(self.real))]
        return [
            Group(
                self.class_names.get(label, f"class {label}"),
                _addresses(self.images, label),
                _addresses(self.real, label),
            )
            for label in known
        ]

    def save(self, path: Path) -> None:
        """Write the sheet as one safetensors file."""
        tensors = {"images": self.images.pixels, "classes": self.images.classes}
        if self.real is not None:
            tensors |= {"real_images": self.real.pixels, "real_classes": self.real.classes}
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {str(label): name for label, name in self.class_names.items()}
        about = {"count": str(self.count), "class_names": json.dumps(names)}
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, about)

    @staticmethod
    def load(path: Path) -> "ContactSheet":
        """Read what ``save`` wrote.

        Raises:
            RunFolderError: If the file is missing or not readable.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                about = stored.metadata()
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{path}: missing or not readable ({error}). Run the same command again to finish "
                "the run."
            ) from error
        real = None
        if "real_images" in tensors:
            real = Pictures(tensors["real_images"], tensors["real_classes"])
        names = {int(label): name for label, name in json.loads(about["class_names"]).items()}
        images = Pictures(tensors["images"], tensors["classes"])
        return ContactSheet(images, int(about["count"]), real, names)


def contact_sheet(
    images: ImageSet | LazyImages,
    spec: InputSpec,
    *,
    real: ImageSet | LazyImages | None = None,
    class_names: Sequence[str] | None = None,
    most_tiles: int = MOST_TILES,
    most_classes: int = MOST_CLASSES,
) -> ContactSheet:
    """Choose and shrink what is shown; of images on disk only the chosen ones are read.

    With classes (the targets; the likeliest of soft ones) every class gets as many tiles as fit, up
    to 8, and of more than 20 classes 20 are spread over all. Without, half as many tiles are spread
    over the set. Real images are shown of the same classes, or spread likewise.

    Args:
        images: The set.
        spec: Turns images back into pixels.
        real: Real images to compare with.
        class_names: The teacher's.
        most_tiles: Of the images and, as many again, of the real ones.
        most_classes: Classes that are shown.
    """
    labels, real_labels = _classes(images), None if real is None else _classes(real)
    both = labels is not None and (real is None or real_labels is not None)
    shown: list[int] = []
    if labels is not None and both:
        known = sorted(set(labels.tolist()))
        shown = [known[index] for index in spread(len(known), most_classes).tolist()]
    names = class_names or ()
    return ContactSheet(
        images=_pictures(images, labels, shown, spec, most_tiles),
        count=len(images),
        real=None if real is None else _pictures(real, real_labels, shown, spec, most_tiles),
        class_names={label: names[label] for label in shown if label < len(names)},
    )


def _classes(images: ImageSet | LazyImages) -> Tensor | None:
    """``(N,)`` class indices, or None."""
    targets = images.targets
    if targets is None:
        return None
    return targets if targets.dim() == 1 else targets.argmax(dim=1)


def _pictures(
    images: ImageSet | LazyImages,
    labels: Tensor | None,
    shown: list[int],
    spec: InputSpec,
    most: int,
) -> Pictures:
    if shown and labels is not None:
        each = max(1, min(MOST_OF_A_CLASS, most // len(shown)))
        # Four in a row on every screen: no row begins with a single tile.
        each -= each % 4 if each > 4 else 0
        members = [(labels == label).nonzero()[:, 0] for label in shown]
        chosen = torch.cat([some[spread(len(some), each)] for some in members])
        classes = labels[chosen]
    else:
        chosen = spread(len(images), most // 2)
        classes = torch.full((len(chosen),), UNKNOWN)
    return Pictures(_thumbnails(_taken(images, chosen), spec), classes)


def _taken(images: ImageSet | LazyImages, chosen_M: Tensor) -> Tensor:
    """The chosen images ``(M, C, H, W)``, in the order of ``chosen_M``."""
    if isinstance(images, ImageSet):
        return images.images[chosen_M]
    if not len(chosen_M):
        return torch.empty(0, 1, 1, 1)
    # Files are read in the order in which they lie.
    order = chosen_M.argsort()
    part = replace(images, indices=images.indices[chosen_M[order]])
    read = torch.cat([batch.images for batch in part.batches(64)])
    return read[order.argsort()]


def _thumbnails(images_NCHW: Tensor, spec: InputSpec) -> Tensor:
    if not len(images_NCHW):
        return torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    return small_pixels(images_NCHW, spec, LARGEST_TILE)


def _addresses(pictures: Pictures | None, label: int | None = None) -> list[str]:
    if pictures is None:
        return []
    chosen = pictures.pixels if label is None else pictures.pixels[pictures.classes == label]
    return [data_address(tile / 255) for tile in chosen]

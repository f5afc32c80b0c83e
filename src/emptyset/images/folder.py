"""Real images from disk, prepared as the teacher expects, read while they are used.

Five layouts are understood:

* a folder of photos: no labels;
* a folder with one subfolder per class: labels by subfolder (see ``class_indices``);
* an ``.npz`` file with ``images``, uint8 ``(N, H, W, C)`` or ``(N, H, W)``, and optionally
  ``labels`` ``(N,)`` integers;
* an image set that ``emptyset synthesize`` stored, class indices or probabilities with it;
* the same in shards, as ``--shards`` writes them: their folder, or one of its ``.tar`` files.

Photos and npz images of another size than the teacher's are resized: shorter side to
``Preprocessing.resize`` and centre crop, or straight to ``(H, W)`` where ``resize`` is None.
npz images that already have the teacher's ``(H, W)`` are taken as they are. ``limit`` images are
spread evenly over the source, so that sorted classes are all represented. Memory does not grow
with the number of images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import CARD_NAME, FILE_NAME, Batch, ImageSet
from emptyset.images.npz_images import NpzImages
from emptyset.images.photos import SUFFIXES, Photos
from emptyset.images.preprocessing import Preprocessing
from emptyset.images.shards import holds_shards, read_shards
from emptyset.images.stored_images_file import StoredImagesFile, require_stored_for

Reader = Callable[[Tensor, int], Iterator[Tensor]]
"""Called with sorted indices ``(M,)`` and a batch size; gives ``(N, C, H, W)`` float32."""


@dataclass(frozen=True)
class LazyImages:
    """Images on disk, in the teacher's normalised units once they are read.

    Attributes:
        path: Where they are.
        read: Reads batches of chosen images.
        indices: ``(N,)`` which images of the source, ascending.
        all_targets: ``(M,)`` class indices or ``(M, K)`` probabilities of all images of the source,
            or None.
        layout: ``photos``, ``class folders``, ``npz`` or ``image set`` (in shards or not).
        history: What made the images, where that is known.
    """

    path: Path
    read: Reader
    indices: Tensor
    all_targets: Tensor | None
    layout: str
    history: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def targets(self) -> Tensor | None:
        """``(N,)`` class indices, ``(N, K)`` probabilities, or None."""
        return None if self.all_targets is None else self.all_targets[self.indices]

    @property
    def labels(self) -> Tensor | None:
        """``(N,)`` class indices, or None: by probabilities no right answers can be counted."""
        targets = self.targets
        return None if targets is None or targets.dim() != 1 else targets

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order, ``size`` at a time; the last batch may be smaller.

        Raises:
            ImagesError: If a file cannot be read; the message names it.
        """
        start, targets = 0, self.targets
        for images in self.read(self.indices, size):
            stop = start + len(images)
            yield Batch(images, None if targets is None else targets[start:stop])
            start = stop

    def limited(self, limit: int | None) -> "LazyImages":
        """At most ``limit`` of them, spread evenly."""
        return replace(self, indices=self.indices[spread(len(self), limit)])

    def image_set(self, limit: int | None = None) -> ImageSet:
        """The images, or ``limit`` of them spread evenly, in memory."""
        chosen = self.limited(limit)
        batches = list(chosen.batches(64))
        entry = {
            "stage": "images",
            "method": self.layout,
            "path": str(self.path),
            "count": len(chosen),
        }
        images = torch.cat([batch.images for batch in batches])
        return ImageSet(images, chosen.targets, history=(*self.history, entry))


def load_images(
    path: Path,
    spec: Preprocessing,
    *,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    classes: Callable[[], int | None] | None = None,
) -> LazyImages:
    """Find the images at ``path``; nothing is decoded yet.

    Args:
        path: Folder or file, see the module docstring.
        spec: Size, channels and normalisation that the teacher expects.
        limit: At most this many images; None: all.
        class_names: The teacher's; subfolders are matched with them.
        classes: Asked for their number where their names are not known.

    Raises:
        ImagesError: If there are no images, their channels are not the teacher's, or labels and
            images do not belong together.
    """
    if limit is not None and limit < 1:
        raise ImagesError(f"{path}: at least 1 image must be asked for. Got a limit of {limit}.")
    if not path.exists():
        raise ImagesError(
            f"{path}: no such file or folder. Give a folder of photos, a folder with one "
            "subfolder per class, an .npz file or a stored image set."
        )
    if holds_shards(path):
        found = _sharded(path, spec)
    elif path.is_dir() and (path / FILE_NAME).exists():
        found = _stored(path, spec)
    elif path.name == FILE_NAME and (path.parent / CARD_NAME).exists():
        found = _stored(path.parent, spec)
    elif path.is_file() and path.suffix == ".npz":
        npz = NpzImages(path, spec)
        found = LazyImages(path, npz.read, torch.arange(len(npz)), npz.labels, "npz")
    elif path.is_dir():
        found = _photos(path, spec, class_names, classes)
    elif path.suffix == ".tar":
        found = _sharded(path, spec)  # says what its folder lacks
    else:
        raise ImagesError(
            f"{path}: expected a folder or an .npz file with 'images'. One photo is no "
            "calibration set; put photos into a folder and give the folder."
        )
    return found.limited(limit)


def spread(count: int, limit: int | None) -> Tensor:
    """``limit`` of ``count`` positions, evenly spread and ascending, ``(min(count, limit),)``."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def class_indices(
    path: Path,
    folders: Sequence[str],
    class_names: Sequence[str] | None,
    classes: int | None = None,
) -> list[int]:
    """The class index that each subfolder stands for.

    The teacher's class names decide where every subfolder is called like one (upper and lower
    case, spaces and underscores do not matter). Otherwise subfolders whose names are all whole
    numbers stand for these indices, or, where one is too large and there is one for every class,
    are numbered in the order of the numbers. Otherwise subfolders are numbered in the order of
    their names, which is only right when there is one for every class.

    Args:
        path: The folder, for messages.
        folders: Names of its subfolders, sorted.
        class_names: The teacher's, where they are known.
        classes: Their number; None: not known either, and then order decides.

    Raises:
        ImagesError: If the number of classes is known and none of the rules fits.
    """
    count = classes if class_names is None else len(class_names)

    def plain(name: str) -> str:
        return name.casefold().replace("_", " ").strip()

    if class_names is not None:
        known = {plain(name): index for index, name in enumerate(class_names)}
        if len(known) == len(class_names) and all(plain(f) in known for f in folders):
            return [known[plain(folder)] for folder in folders]
    if all(folder.isdecimal() for folder in folders):
        numbers = [int(folder) for folder in folders]
        if count is None or max(numbers) < count:
            return numbers
        if len(numbers) == count:  # 1 to 10 of ten classes: 10 comes last, not second
            order = sorted(numbers)
            return [order.index(number) for number in numbers]
    if count is not None and len(folders) != count:
        first = "" if class_names is None else f" (first: '{class_names[0]}')"
        raise ImagesError(
            f"{path}: {len(folders)} subfolders (first: '{folders[0]}') for a teacher with "
            f"{count} classes{first}. Name the subfolders like the teacher's classes or by class "
            "index, or give one subfolder for every class. Photos without labels lie in one folder."
        )
    return list(range(len(folders)))


def _photos(
    path: Path,
    spec: Preprocessing,
    class_names: Sequence[str] | None,
    classes: Callable[[], int | None] | None,
) -> LazyImages:
    direct = _photos_in(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    per_folder = [(folder, _photos_in(folder)) for folder in folders]
    per_folder = [(folder, photos) for folder, photos in per_folder if photos]
    if direct and per_folder:
        raise ImagesError(
            f"{path}: holds photos ({direct[0].name}) and subfolders with photos "
            f"({per_folder[0][0].name}/). Give a folder that holds one kind only."
        )
    if not direct and not per_folder:
        if any(path.glob("*.tar")):
            read_shards(path)  # says what they lack
        raise ImagesError(
            f"{path}: no images found. Looked for {', '.join(SUFFIXES)} in the folder and its "
            "subfolders."
        )
    if direct:
        photos = Photos(direct, spec)
        return LazyImages(path, photos.read, torch.arange(len(direct)), None, "photos")
    count = classes() if class_names is None and classes is not None else None
    names = [folder.name for folder, _ in per_folder]
    indices = class_indices(path, names, class_names, count)
    files = [photo for _, photos in per_folder for photo in photos]
    labels = [index for index, (_, some) in zip(indices, per_folder, strict=True) for _ in some]
    photos = Photos(files, spec)
    everything = torch.arange(len(files))
    return LazyImages(path, photos.read, everything, torch.tensor(labels), "class folders")


def _photos_in(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _stored(path: Path, spec: Preprocessing) -> LazyImages:
    stored = StoredImagesFile(path, spec)
    return LazyImages(
        path, stored.read, torch.arange(len(stored)), stored.targets, "image set", stored.history
    )


def _sharded(path: Path, spec: Preprocessing) -> LazyImages:
    shards = read_shards(path)
    require_stored_for(path, shards.shape, shards.history, spec)
    return LazyImages(
        path, shards.read, torch.arange(len(shards)), shards.targets, "image set", shards.history
    )

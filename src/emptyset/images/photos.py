"""Photos in files: decoded with Pillow, resized, cropped and normalised."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.preprocessing import Preprocessing

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_MODES = {1: "L", 3: "RGB"}
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_THREADS = 4


class Photos:
    """Files that are decoded when they are read, a few at a time."""

    def __init__(self, files: Sequence[Path], spec: Preprocessing) -> None:
        require_photo_channels(files[0].parent, spec)
        self._files, self._spec = files, spec

    def read(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Batches of the photos at ``indices``, ``(N, C, H, W)`` float32 [normalised units]."""
        chosen = [self._files[i] for i in indices.tolist()]
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(chosen), size):
                pixels = list(pool.map(self._decode, chosen[start : start + size]))
                yield self._spec.normalise(torch.stack(pixels))

    def _decode(self, file: Path) -> Tensor:
        try:
            with Image.open(file) as photo:
                return pixels_of(photo, self._spec)
        # Pillow raises these, and struct.error or SyntaxError for some broken files.
        except Exception as error:
            raise ImagesError(
                f"{file}: cannot be read as an image ({type(error).__name__}: {error}). Remove "
                "or replace it."
            ) from error


def require_photo_channels(path: Path, spec: Preprocessing) -> None:
    """Refuse a teacher whose channels no photo has.

    Raises:
        ImagesError: If the teacher takes neither 1 nor 3 channels.
    """
    if spec.shape[0] not in _MODES:
        raise ImagesError(
            f"{path}: photos have 1 or 3 channels, but the teacher takes {spec.shape[0]}. Give "
            "an .npz file with as many channels."
        )


def pixels_of(photo: Image.Image, spec: Preprocessing) -> Tensor:
    """One photo as the teacher's pixels, ``(C, H, W)`` float32 in 0..1.

    It is turned as its EXIF orientation says, and what is transparent lies on white. The shorter
    side is brought to ``spec.resize`` (more where the crop needs more), then the centre
    is cut out; without ``resize`` the photo is squeezed to ``(H, W)``.
    """
    if photo.mode.startswith("I;16"):
        # Pillow clips 16-bit grey values when it converts them; keep the upper eight bits.
        photo = Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))
    elif photo.mode == "I":
        # The same values in 32 bits, as Pillow opens 16-bit PGM.
        values = np.asarray(photo)
        if values.max() > 65_535:
            raise ValueError("pixels are numbers above 65,535, whose white is not known")
        photo = Image.fromarray((values >> (8 if values.max() > 255 else 0)).astype(np.uint8))
    elif photo.mode == "F":
        raise ValueError("pixels are floating-point numbers, whose white is not known")
    photo = _on_white(ImageOps.exif_transpose(photo)).convert(_MODES[spec.shape[0]])
    _, height, width = spec.shape
    interpolation = _FILTERS[spec.interpolation]
    if spec.resize is None:
        if photo.size != (width, height):
            photo = photo.resize((width, height), interpolation)
    else:
        shorter = min(photo.size)
        factor = max(spec.resize / shorter, width / photo.width, height / photo.height)
        # int() as torchvision and timm have it, never below what the crop needs.
        size = (
            max(width, spec.resize if photo.width == shorter else int(photo.width * factor)),
            max(height, spec.resize if photo.height == shorter else int(photo.height * factor)),
        )
        if photo.size != size:
            photo = photo.resize(size, interpolation)
        left = round((photo.width - width) / 2)
        top = round((photo.height - height) / 2)
        photo = photo.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.array(photo, dtype=np.uint8))
    pixels = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return pixels.float() / 255.0


def _on_white(photo: Image.Image) -> Image.Image:
    """Without transparency: what is clear has colours that nobody was to see."""
    if not photo.has_transparency_data:
        return photo
    shown = photo.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)

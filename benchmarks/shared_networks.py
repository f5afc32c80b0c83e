"""The third-party networks of `../shared/weights` as teachers, with their preprocessing."""

import itertools
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Where every benchmark computes.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Network:
    """How one weight file is used.

    Attributes:
        size: Side of the image [pixels].
        mean: Per channel [0..255].
        std: Per channel [0..255].
        data: Folder of the labelled test images.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str


IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
DISTILLER = (125.307, 122.961, 113.8575)
NETWORKS = {
    "cifar10_resnet20_akamaster": Network(32, *IMAGENET, "cifar10"),
    "cifar10_resnet32_akamaster": Network(32, *IMAGENET, "cifar10"),
    "cifar10_resnet20_distiller": Network(32, DISTILLER, (51.5865, 50.847, 51.255), "cifar10"),
    "cifar10_resnet8_mlperftiny": Network(32, (0.0,) * 3, (1.0,) * 3, "cifar10"),
    "cifar10_vit_prenorm_sachinxmpl": Network(32, DISTILLER, (62.985, 62.0925, 66.708), "cifar10"),
    "cifar100_resnet20_distiller": Network(
        32, (129.285, 124.185, 112.455), (68.085, 65.28, 70.38), "cifar100"
    ),
    "imagenet_resnet18_pqf": Network(224, *IMAGENET, "imagenet_val1300"),
    "imagenet_resnet50_pqf_large": Network(224, *IMAGENET, "imagenet_val1300"),
    "imagenet_mobilenetv1_025_keras": Network(224, (127.5,) * 3, (127.5,) * 3, "imagenet_val1300"),
    "imagenet_tinydarknet": Network(224, (0.0,) * 3, (255.0,) * 3, "imagenet_val1300"),
}


def load(name: str) -> Teacher:
    """One of the networks, frozen, in eval mode, on ``DEVICE``."""
    sys.path.insert(0, str(SHARED / "weights"))
    try:
        import networks
    finally:
        sys.path.pop(0)
    module = networks.load(str(SHARED / "weights" / f"{name}.safetensors"))
    module = module.eval().requires_grad_(False).to(DEVICE)
    about = NETWORKS[name]
    mean, std = (tuple(v / 255 for v in values) for values in (about.mean, about.std))
    spec = InputSpec((3, about.size, about.size), mean, std)
    return Teacher(f"shared:{name}", module, spec, weights_hash=hash_of_weights(module))


def labelled_images(name: str, limit: int | None = None) -> ImageSet:
    """Its labelled test images, normalised."""
    about = NETWORKS[name]
    if about.data.startswith("cifar"):
        data = np.load(SHARED / "data" / about.data / "test.npz")
        pixels, labels = data["images"][:limit], data["labels"][:limit]
    else:
        pixels, labels = _photos(about, limit)
    return _normalised(about, pixels, labels)


def training_images(name: str, count: int) -> ImageSet:
    """The first ``count`` real training images of a CIFAR network, normalised."""
    from PIL import Image

    about = NETWORKS[name]
    data = np.load(SHARED / "data" / about.data / "train.npz")
    strips, offsets, pixels = data["webp"], data["offsets"], []
    for start, stop in itertools.pairwise(offsets):
        with Image.open(BytesIO(strips[start:stop].tobytes())) as strip:
            pixels.append(np.asarray(strip.convert("RGB")).reshape(-1, 32, 32, 3))
        if sum(map(len, pixels)) >= count:
            break
    return _normalised(about, np.concatenate(pixels)[:count], data["labels"][:count])


def _photos(about: Network, limit: int | None) -> tuple[Any, Any]:
    from PIL import Image

    data = np.load(SHARED / "data" / about.data / "images.npz")
    jpeg, offsets, labels = data["jpeg"], data["offsets"], data["labels"][:limit]
    pixels = []
    for i in range(len(labels)):
        with Image.open(BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) as photo:
            left, top = ((side - about.size) // 2 for side in photo.size)
            box = (left, top, left + about.size, top + about.size)
            pixels.append(np.asarray(photo.convert("RGB").crop(box)))
    return np.stack(pixels), labels


def _normalised(about: Network, pixels: Any, labels: Any) -> ImageSet:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (about.mean, about.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - mean) / std
    return ImageSet(images.contiguous(), torch.from_numpy(labels).long())

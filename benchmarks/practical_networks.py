"""The networks of `../shared/weights` as a command line names them, and their images."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shared_networks as shared
import torch
from torch import Tensor, nn

from emptyset.images.image_set import ImageSet

HERE = Path(__file__).parent
WEIGHTS, DATA = shared.SHARED / "weights", shared.SHARED / "data"
SQUEEZENET = "imagenet_squeezenet11_ncnn_fp16"
# Both have nothing to make images from.
WITHOUT_BATCH_NORM = ("cifar10_vit_prenorm_sachinxmpl", SQUEEZENET)
# Codebook weights, BatchNorm re-estimated by others: what they lose at few bits stands apart.
CODEBOOKS = ("imagenet_resnet18_pqf", "imagenet_resnet50_pqf_large")
PHOTOS = ("imagenet_1shot", "imagenet_val1300")
# Its constants are those of BGR pixels; the factory below turns RGB around.
_ABOUT = shared.NETWORKS | {
    SQUEEZENET: shared.Network(227, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0), "imagenet_val1300")
}


class FromRGB(nn.Module):
    """A network that wants BGR, for RGB images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(torch.flip(x, [1]))  # type: ignore[no-any-return]


def squeezenet(path: str) -> nn.Module:
    """Factory for ``--model practical_networks:squeezenet``."""
    sys.path.insert(0, str(WEIGHTS))
    import networks

    return FromRGB(networks.load(path)).eval()


def arguments_of(network: str) -> list[str]:
    """What follows ``emptyset quantize``; the factories are found on ``search_path``."""
    about = _ABOUT[network]
    factory = "practical_networks:squeezenet" if network == SQUEEZENET else "networks:load"
    path = {"path": str(WEIGHTS / f"{network}.safetensors")}
    mean, std = (",".join(str(v / 255) for v in values) for values in (about.mean, about.std))
    return [
        "file:", "--model", factory, "--model-args", json.dumps(path),
        "--input", f"3x{about.size}x{about.size}", "--mean", mean, "--std", std,
    ]  # fmt: skip


def search_path() -> str:
    """For ``PYTHONPATH``; what is there already stays."""
    return os.pathsep.join([str(WEIGHTS), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass(frozen=True)
class Judge:
    """Labelled images that no student is fitted to.

    Attributes:
        name: Of their set.
        images: Normalised for the network.
    """

    name: str
    images: ImageSet


def judges(network: str) -> list[Judge]:
    """CIFAR: all test images. ImageNet: every second image of both sets."""
    about = _ABOUT[network]
    if about.data.startswith("cifar"):
        return [Judge(about.data, shared.labelled_images(network))]
    found = []
    for data in PHOTOS:
        pixels, labels = _halves(about, data, 1)
        found.append(Judge(data, shared._normalised(about, pixels, labels)))
    return found


def real_images(network: str, count: int, folder: Path) -> Path:
    """An npz of real images to quantize with, disjoint from those of ``judges``.

    Args:
        network: Which one.
        count: CIFAR: that many of the training set. ImageNet: the other half of both sets.
        folder: Where the file is written, once.
    """
    about = _ABOUT[network]
    path = folder / f"{network}-real-{count}.npz"
    if path.is_file():
        return path
    if about.data.startswith("cifar"):
        images = shared.training_images(network, count)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (about.mean, about.std))
        pixels: Any = (images.images * std + mean).round().clamp(0, 255).to(torch.uint8)
        pixels, labels = pixels.permute(0, 2, 3, 1).numpy(), images.targets.numpy()  # type: ignore[union-attr]
    else:
        parts = [_halves(about, data, 0) for data in PHOTOS]
        pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part.npz")
    np.savez(aside, images=pixels, labels=labels)
    aside.replace(path)
    return path


def _halves(about: shared.Network, data: str, which: int) -> tuple[Any, Any]:
    pixels, labels = shared._photos(replace(about, data=data), None)
    return pixels[which::2], labels[which::2]


def paired_difference(ours: Sequence[bool], other: Sequence[bool]) -> tuple[float, float]:
    """How much less often ours is right, and the standard error of that [points].

    Args:
        ours: For each image whether the answer is right.
        other: The same of the same images.
    """
    gap = np.asarray(other, dtype=float) - np.asarray(ours, dtype=float)
    return 100 * float(gap.mean()), 100 * float(gap.std(ddof=1) / len(gap) ** 0.5)


def unpaired_difference(ours: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """The same from two rows alone: with the standard error of independent samples [points]."""
    shares = [row["file_top1"] / 100 for row in (ours, other)]
    variance = sum(
        p * (1 - p) / row["test_images"] for p, row in zip(shares, (ours, other), strict=True)
    )
    return 100 * (shares[1] - shares[0]), 100 * variance**0.5

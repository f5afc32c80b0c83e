"""What stays in float, family by family: capture, prepare, calibrate, export, certificate.

    python benchmarks/file_families.py [--families resnet,vit] [--bits w8a8,w4a4]

Small variants (shallow, narrow, 32x32 or 64x64 images) of the kinds of networks that people
quantize, with random weights and BatchNorm statistics from three batches of noise: the operators
are those of the full networks. Needs the extra `models`. Writes `results/file_families.md` and
`.json`.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.exporters.certificate import certify
from emptyset.exporters.kernels import instruction_set
from emptyset.exporters.onnx import export
from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import InputSpec, Teacher

RESULTS = Path(__file__).parent / "results"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


def resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, (1, 1, 1, 1), CLASSES, channels=(16, 20, 24, 28))


def mobilenetv2() -> nn.Module:
    from torchvision.models.mobilenetv2 import MobileNetV2

    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return MobileNetV2(CLASSES, width_mult=0.5, inverted_residual_setting=settings)


def mobilenetv3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(16, 5, 40, 24, True, "HS", 2, 1, 1.0),
        InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(blocks, 40, num_classes=CLASSES)


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)]
    return EfficientNet(blocks, dropout=0.2, num_classes=CLASSES)


def densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(8, (2, 2), 16, num_classes=CLASSES)


def preactivation_resnet() -> nn.Module:
    import timm

    return timm.create_model(
        "resnetv2_18", num_classes=CLASSES, layers=(1, 1, 1, 1), channels=(16, 20, 24, 28)
    )


def regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    settings = BlockParams([1, 2], [16, 24], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return RegNet(settings, num_classes=CLASSES, stem_width=8)


def shufflenet() -> nn.Module:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [12, 16, 24, 32, 48], num_classes=CLASSES)


def convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=CLASSES, depths=(1, 1, 1, 1), dims=(12, 16, 20, 24))


def vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=24, depth=2, num_heads=3
    )


def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32, patch_size=4, num_classes=CLASSES, embed_dim=12, depths=(1, 2),
        num_heads=(2, 3), window_size=4,
    )  # fmt: skip


class ConcatAndResize(nn.Module):
    """Two resolutions, brought together by a bilinear resize and a concatenation."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inside: int, outside: int, stride: int = 1) -> nn.Module:
            conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())

        self.stem, self.high = layer(3, 8), layer(8, 16, 2)
        self.low, self.merge = layer(16, 24, 2), layer(40, 20)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(self.stem(x))
        low = F.interpolate(self.low(high), size=high.shape[-2:], mode="bilinear")
        return self.head(self.merge(torch.cat([high, low], 1)).mean((2, 3)))


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        build: Gives a small network of the kind.
        side: Height and width of its images [pixels].
    """

    build: Callable[[], nn.Module]
    side: int = 32


FAMILIES = {
    "resnet": Family(resnet, 64),
    "mobilenetv2": Family(mobilenetv2),
    "mobilenetv3": Family(mobilenetv3, 64),
    "efficientnet": Family(efficientnet),
    "densenet": Family(densenet),
    "preactivation_resnet": Family(preactivation_resnet, 64),
    "regnet": Family(regnet),
    "shufflenet": Family(shufflenet, 64),
    "convnext": Family(convnext, 64),
    "vit": Family(vit),
    "swin": Family(swin),
    "concat_and_resize": Family(ConcatAndResize),
}


def teacher_of(name: str) -> Teacher:
    """An untrained network whose BatchNorm has statistics of its own."""
    family = FAMILIES[name]
    shape = (3, family.side, family.side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = family.build().train()
        with torch.no_grad():
            for _ in range(3):
                module(torch.randn(8, *shape))
    return Teacher(name, module.eval().requires_grad_(False), InputSpec(shape, MEAN, STD))


def measure(teacher: Teacher, bits: str, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    noise = torch.randn(16, *teacher.input.shape, generator=torch.Generator().manual_seed(1))
    images = ImageSet(noise)
    student = prepare(teacher, bits)
    with student.float_mode(), torch.no_grad():
        expected = teacher.module(noise)
        gap = float((student(noise) - expected).abs().max() / expected.abs().max())
    calibrate = refiners.get("calibrate")
    calibrate.make(calibrate.config()).refine(student, images, seed=0)
    artefact = export(student, folder / "model.onnx")
    certificate = certify(artefact.path, student, images, limit=8, simulation=artefact.simulation)
    return {
        "family": teacher.name,
        "bits": bits,
        "certificate": "holds" if certificate.holds else certificate.fault,
        "codes": certificate.values,
        "ties": certificate.ties,
        "float_gap": gap,
        "integer_share": round(artefact.integer_share, 3),
        "series_pairs": artefact.series_pairs,
        "other_pairs": artefact.other_pairs,
        "in_float": dict(sorted(Counter(f.operator for f in artefact.fallbacks).items())),
        "why": {f.operator: f.why for f in artefact.fallbacks},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The committed table, and why each kind of operator stays in float."""
    lines = [
        "# Families of networks, and what stays in float",
        "",
        f"`python benchmarks/file_families.py`, plan `integer`, {instruction_set()}, torch "
        f"{torch.__version__}. Small variants, random weights.",
        "",
        "| family | bits | certificate | ties of codes | integer share | series pairs "
        "| operators in float |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floats = ", ".join(f"{count} {kind}" for kind, count in row["in_float"].items())
        lines.append(
            f"| {row['family']} | {row['bits']} | {row['certificate']} | {row['ties']} of "
            f"{row['codes']:,} | {row['integer_share']:.2f} | {row['series_pairs']} "
            f"| {floats or 'none'} |"
        )
    why = {kind: reason for row in rows for kind, reason in row["why"].items()}
    lines += ["", "| operator in float | why |", "|---|---|"]
    lines += [f"| {kind} | {reason} |" for kind, reason in sorted(why.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--bits", default="w8a8,w4a4")
    options = parser.parse_args()
    rows = []
    for name in options.families.split(","):
        teacher = teacher_of(name)
        for bits in options.bits.split(","):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(teacher, bits, Path(folder)))
            print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(rows, indent=1) + "\n"
    (RESULTS / "file_families.json").write_text(text, encoding="utf-8")
    (RESULTS / "file_families.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Which backbone a teacher's images get, and how it is built."""

from emptyset.generators.autorecon_cells import CELLS, WIDTH, AutoReConBackbone
from emptyset.generators.upsampling_backbone import UpsamplingBackbone, is_small

AUTO = "auto"
BACKBONES = (AUTO, "cifar", "imagenet")
CELL_CHOICES = (AUTO, *CELLS)

Shape = tuple[int, int, int]


def form_of(shape: Shape, backbone: str) -> str:
    """``cifar`` or ``imagenet``: what ``auto`` stands for (cifar up to 64 pixels)."""
    if backbone != AUTO:
        return backbone
    return "cifar" if is_small(shape) else "imagenet"


def upsampling_backbone(
    shape: Shape, classes: int, *, form: str, latent: int, widths: tuple[int, int]
) -> UpsamplingBackbone:
    """GDFQ's generator: the ImageNet form has class-conditional BatchNorm."""
    return UpsamplingBackbone(
        shape, latent=latent, widths=widths, classes=classes if form == "imagenet" else None
    )


def autorecon_backbone(
    shape: Shape, classes: int, *, cells: str, latent: int, width: int = WIDTH
) -> AutoReConBackbone:
    """AutoReCon's generator.

    Args:
        shape: ``(C, H, W)`` of an image [pixels].
        classes: C.
        cells: Whose search; ``auto``: CIFAR-10's up to 64 pixels and 10 classes, CIFAR-100's for
            more classes, ResNet-18's for larger images.
        latent: Length of a latent.
        width: Channels everywhere.
    """
    if cells == AUTO:
        small = "cifar10" if classes <= 10 else "cifar100"
        cells = small if is_small(shape) else "resnet18"
    return AutoReConBackbone(shape, latent=latent, classes=classes, cells=cells, width=width)

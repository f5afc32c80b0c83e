"""AutoReCon's generators: the published outcome of its architecture search.

Source: AutoReCon, Zhu et al. 2021, arXiv:2105.12151; the codes of the final cells are those in the
    code released with AIT. The search itself was not published in a form that could be repeated.
Differs from source: a cross link "none" is left out; there it computes a tensor, then multiplies it
    by zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from emptyset.generators.conditional_norm import LabelledNorm
from emptyset.generators.upsampling_backbone import SLOPE, as_pixels

WIDTH = 64
# Of every class-conditional BatchNorm.
EPSILON = 0.8
# Upsamplings, operators and cross links of the three cells, as published.
CELLS = {
    "cifar10": "000010|606546635666245|002001111222",
    "cifar100": "100000|666046425665446|021001021122",
    "resnet18": "111111|666666666566455|121221221121",
    "resnet50": "111111|666666632256645|222112111122",
    "mobilenetv2": "111101|664664622236465|221222212221",
}
_UPSAMPLING = ("nearest", "bilinear")
# Operator number: kernel and dilation of its convolution.
_CONVOLUTIONS = {2: (1, 1), 3: (3, 1), 4: (5, 1), 5: (3, 2), 6: (5, 2)}

Size = tuple[int, int]


@dataclass(frozen=True)
class CellCode:
    """What one cell consists of, by published numbers.

    Attributes:
        ups: Two upsamplings: 0 nearest, 1 bilinear.
        ops: Five operators: 0 zero, 1 skip, 2 to 4 convolutions of 1, 3, 5 pixels, 5 and 6 dilated
            convolutions of 3 and 5.
        cross: Six links from the cell before: 0 none, 1 nearest, 2 bilinear; empty for the first.
    """

    ups: Sequence[int]
    ops: Sequence[int]
    cross: Sequence[int]

    @staticmethod
    def parse(text: str) -> "tuple[CellCode, ...]":
        """The three cells of a published code."""
        ups, ops, cross = ([int(c) for c in part] for part in text.split("|"))
        links: list[list[int]] = [[], cross[:6], cross[6:]]
        return tuple(
            CellCode(ups[2 * i : 2 * i + 2], ops[5 * i : 5 * i + 5], links[i]) for i in range(3)
        )


class _Block(nn.Module):
    """LabelledNorm, LeakyReLU and a convolution that keeps the size."""

    def __init__(self, classes: int, kernel: int, dilation: int, width: int) -> None:
        super().__init__()
        self.norm = LabelledNorm(width, classes, epsilon=EPSILON)
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(width, width, kernel, padding=padding, dilation=dilation)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = self.conv(leaky_relu(self.norm(x, weights), SLOPE))
        return out


class _Up(nn.Module):
    """Upsampling, then norm, LeakyReLU and a convolution of one pixel."""

    def __init__(self, classes: int, mode: str, width: int) -> None:
        super().__init__()
        self._mode = mode
        self.block = _Block(classes, 1, 1, width)

    def forward(self, x: Tensor, size: Size, weights: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self._mode == "bilinear":
            large = interpolate(x, size=size, mode="bilinear", align_corners=False)
            return self.block(large, weights)  # type: ignore[no-any-return]
        if size != (2 * height, 2 * width):
            return self.block(interpolate(x, size=size), weights)  # type: ignore[no-any-return]
        # Four equal pixels for one change neither statistics nor what is computed per pixel.
        return interpolate(self.block(x, weights), size=size)


class _Cell(nn.Module):
    """Four nodes: two upsampled inputs and two sums of operators."""

    def __init__(self, code: CellCode, classes: int, width: int) -> None:
        super().__init__()
        self._skips = [number == 1 for number in code.ops]
        self.ups = nn.ModuleList(_Up(classes, _UPSAMPLING[u], width) for u in code.ups)
        self.ops = nn.ModuleDict(
            {
                str(place): _Block(classes, *_CONVOLUTIONS[number], width)
                for place, number in enumerate(code.ops)
                if number in _CONVOLUTIONS
            }
        )
        self.cross = nn.ModuleDict(
            {
                str(place): _Up(classes, _UPSAMPLING[number - 1], width)
                for place, number in enumerate(code.cross)
                if number
            }
        )

    def forward(self, x: Tensor, before: list[Tensor], size: Size, weights: Tensor) -> list[Tensor]:
        """The nodes n0 to n3; the last is the cell's output."""
        n0, n1 = (up(x, size, weights) for up in self.ups)
        n2 = self._sum([(0, n0), (1, n1)], before, 0, size, weights)
        n3 = self._sum([(2, n0), (3, n1), (4, n2)], before, 3, size, weights)
        return [n0, n1, n2, n3]

    def _sum(
        self,
        operands: list[tuple[int, Tensor]],
        before: list[Tensor],
        first_link: int,
        size: Size,
        weights: Tensor,
    ) -> Tensor:
        parts = []
        for place, node in operands:
            if str(place) in self.ops:
                parts.append(self.ops[str(place)](node, weights))
            elif self._skips[place]:
                parts.append(node)
        for offset, node in enumerate(before[:3]):
            link = str(first_link + offset)
            if link in self.cross:
                parts.append(self.cross[link](node, size, weights))
        return torch.stack(parts).sum(dim=0) if parts else torch.zeros_like(operands[0][1])


class AutoReConBackbone(nn.Module):
    """Three cells, each doubling the size; a third of the latent enters before each.

        out₁ = cell₀(in₀),  out₂ = cell₁(out₁ + in₁),  out₃ = cell₂(out₂ + in₂)
        image = BN(tanh(Conv3×3(LeakyReLU(BN(out₃)))))

    Sizes that 8 does not divide are rounded up; the upsampling ends at the size.

    Attributes:
        latent: Length of a latent.
        conditional: Always: every BatchNorm takes gain and shift from the labels.
    """

    conditional = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        latent: int,
        classes: int,
        cells: str,
        width: int = WIDTH,
    ) -> None:
        """Build it; ``initialised`` gives it values.

        Args:
            shape: ``(C, H, W)`` of an image [pixels].
            latent: Length of a latent, at least 3.
            classes: Number of classes.
            cells: One of ``CELLS``.
            width: Channels everywhere.
        """
        super().__init__()
        channels, *size = shape
        self.latent = latent
        self._parts = [latent // 3, latent // 3, latent - 2 * (latent // 3)]
        self._sizes: list[Size] = [(-(-size[0] // d), -(-size[1] // d)) for d in (8, 4, 2, 1)]
        self._width = width
        self.inputs = nn.ModuleList(
            nn.Linear(part, width * h * w)
            for part, (h, w) in zip(self._parts, self._sizes[:3], strict=True)
        )
        self.cells = nn.ModuleList(
            _Cell(code, classes, width) for code in CellCode.parse(CELLS[cells])
        )
        self.norm = LabelledNorm(width, classes, epsilon=EPSILON)
        self.conv = nn.Conv2d(width, channels, 3, padding=1)
        self.pixels = nn.BatchNorm2d(channels, affine=False)

    def forward(self, latents: Tensor, weights: Tensor | None) -> Tensor:
        """``(N, C, H, W)`` images [standardised pixel units].

        Args:
            latents: ``(N, latent)``.
            weights: ``(N, classes)`` for class-conditional BatchNorm.
        """
        assert weights is not None
        entering = [
            linear(part).view(len(latents), self._width, *size)
            for linear, part, size in zip(
                self.inputs, latents.split_with_sizes(self._parts, dim=1), self._sizes, strict=False
            )
        ]
        nodes: list[Tensor] = []
        for place, cell in enumerate(self.cells):
            x = entering[place] if place == 0 else nodes[-1] + entering[place]
            x = x.contiguous(memory_format=torch.channels_last)
            nodes = cell(x, nodes, self._sizes[place + 1], weights)
        return as_pixels(self.conv(leaky_relu(self.norm(nodes[-1], weights), SLOPE)), self.pixels)

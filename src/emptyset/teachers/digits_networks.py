"""The two small networks that read handwritten digits: a ResNet and a MobileNet.

Both take ``(N, 1, 16, 16)`` and give ``(N, 10)``. They are deep enough that quantizing them is a
real test: residual additions, strides, depthwise convolutions, ReLU6 and linear bottlenecks.

Source: He et al. 2015, arXiv:1512.03385, section 4.2 (the CIFAR form of ResNet); Sandler et al.
    2018, arXiv:1801.04381 (inverted residuals).
Differs from source: fewer blocks and channels; projections in the shortcuts of the ResNet;
    no stride in the first layer of the MobileNet, for the images are small.
"""

from collections import OrderedDict

from torch import Tensor, nn


def _conv_norm(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution without bias, then BatchNorm."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(
                inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False
            ),
            norm=nn.BatchNorm2d(outputs),
        )
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride)
        self.first_relu = nn.ReLU()
        self.second = _conv_norm(outputs, outputs, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _conv_norm(inputs, outputs, 1, stride)
        self.second_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out = self.second(self.first_relu(self.first(x)))
        return self.second_relu(out + self.shortcut(x))  # type: ignore[no-any-return]


class DigitsResNet(nn.Module):
    """Three stages of two basic blocks: 13 convolutions, 2 projections, one linear layer.

    Args:
        widths: Channels of the three stages.
        classes: Number of logits, K.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 48), classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv_norm(1, widths[0], 3)
        self.stem_relu = nn.ReLU()
        blocks = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            blocks.append(BasicBlock(channels, width, stride=1 if stage == 0 else 2))
            blocks.append(BasicBlock(width, width, stride=1))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 1, H, W)`` normalised images to ``(N, K)`` logits."""
        features = self.pool(self.blocks(self.stem_relu(self.stem(images))))
        return self.classifier(features.flatten(1))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expand with 1×1, filter each channel with 3×3, project with 1×1 and no activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = nn.Sequential(_conv_norm(inputs, hidden, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(
            _conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()
        )
        self.project = _conv_norm(hidden, outputs, 1)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.has_shortcut else out


class DigitsMobileNet(nn.Module):
    """Six inverted residuals between two full convolutions.

    Args:
        classes: Number of logits, K.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(1, 16, 3), nn.ReLU6())
        # Inputs, outputs, stride, expansion.
        plan = [
            (16, 16, 1, 1),
            (16, 16, 1, 4),
            (16, 24, 2, 4),
            (24, 24, 1, 4),
            (24, 40, 2, 4),
            (40, 40, 1, 4),
        ]
        self.blocks = nn.Sequential(*(InvertedResidual(*row) for row in plan))
        self.head = nn.Sequential(_conv_norm(40, 96, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 1, H, W)`` normalised images to ``(N, K)`` logits."""
        features = self.pool(self.head(self.blocks(self.stem(images))))
        return self.classifier(features.flatten(1))  # type: ignore[no-any-return]

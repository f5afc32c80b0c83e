"""Qimera's loop in its plain form: nothing frozen, nothing fused, every number read in every step.

Written from the formulas of the paper and of the ZeroQ family's quantizer. Teacher weights carry
gradients, NCHW, float32, eager; images are doubled before they are convolved; weights are quantized
anew in every forward, activations by one elementary operation after the other; the student is
forwarded during the warm-up too.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import interpolate

WIDTH, LATENT = 64, 64


class Rounded(torch.autograd.Function):
    """Round; the gradient passes unchanged."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
        codes = torch.round(scale * x - zero_point)
        half = 2 ** (bits - 1)
        return (torch.clamp(codes, -half, half - 1) + zero_point) / scale

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None


def quantized(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """The family's asymmetric quantizer; ``low`` and ``high`` broadcast with ``x``."""
    scale = (2**bits - 1) / torch.clamp(high - low, min=1e-8)
    zero_point = torch.round(scale * low) + 2 ** (bits - 1)
    return Rounded.apply(x, scale, zero_point, bits)  # type: ignore[no-any-return]


class QuantizedLayer(nn.Module):
    """A convolution or linear whose weight is quantized per output channel in every forward."""

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        flat = layer.weight.detach().flatten(1)
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        low, high = flat.min(dim=1).values.view(shape), flat.max(dim=1).values.view(shape)
        weight = quantized(layer.weight, low, high, self.bits)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


class QuantizedActivation(nn.Module):
    """An activation with the moving average of its batches' ends."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.tracking, self.updates = bits, True, 0
        self.register_buffer("ends", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.tracking:
            self.updates += 1
            now = torch.stack([x.detach().min(), x.detach().max()])
            self.ends = 0.9 * self.ends + 0.1 * now
        ends = self.ends / (1 - 0.9**self.updates)
        return quantized(x, ends[0], ends[1], self.bits)


class QuantizedNetwork(nn.Module):
    """A copy of a ResNet for CIFAR whose every layer, and every ReLU's output, is quantized."""

    def __init__(self, network: nn.Module, bits: int) -> None:
        super().__init__()
        net: Any = network
        self.stem, self.norm = QuantizedLayer(net.conv1, bits), net.bn1
        self.act = QuantizedActivation(bits)
        self.blocks = nn.ModuleList(
            QuantizedBlock(block, bits)
            for layer in (net.layer1, net.layer2, net.layer3)
            for block in layer
        )
        self.linear = QuantizedLayer(net.linear, bits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(F.relu(self.norm(self.stem(x))))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


class QuantizedBlock(nn.Module):
    """Two layers and a shortcut without parameters."""

    def __init__(self, block: Any, bits: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (QuantizedLayer(c, bits) for c in (block.conv1, block.conv2))
        self.bn1, self.bn2 = block.bn1, block.bn2
        self.act1, self.act2 = QuantizedActivation(bits), QuantizedActivation(bits)
        self.stride, self.pad = block.stride, block.pad

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(F.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        out: Tensor = self.act2(F.relu(y + x))
        return out


class PlainGenerator(nn.Module):
    """Mapped embeddings and noise, then the generator for 32 x 32 pixels."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(centres, freeze=False)
        self.mapping = nn.Linear(centres.shape[1], LATENT)
        self.linear = nn.Linear(LATENT, 128 * 64)
        self.norm0 = nn.BatchNorm2d(128)
        self.conv1, self.norm1 = nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128, 0.8)
        self.conv2, self.norm2 = nn.Conv2d(128, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH, 0.8)
        self.conv3, self.norm3 = (
            nn.Conv2d(WIDTH, 3, 3, padding=1),
            nn.BatchNorm2d(3, affine=False),
        )

    def forward(self, classes: Tensor, shares: Tensor) -> Tensor:
        noise = torch.randn(len(classes), LATENT)
        mapped = self.mapping(self.embedding(classes))
        latents = (shares[:, :, None] * mapped).sum(dim=1) + noise
        x = self.norm0(self.linear(latents).view(-1, 128, 8, 8))
        x = F.leaky_relu(self.norm1(self.conv1(interpolate(x, scale_factor=2))), 0.2)
        x = F.leaky_relu(self.norm2(self.conv2(interpolate(x, scale_factor=2))), 0.2)
        images: Tensor = self.norm3(torch.tanh(self.conv3(x)))
        return images


class PlainQimera:
    """Generator and student, step by step.

    Args:
        teacher: A ResNet for CIFAR of ``../shared/weights``, its weights asking for gradients.
        network: A copy of it, to be quantized.
        bits: Of weights and activations.
    """

    def __init__(self, teacher: Any, network: nn.Module, bits: int) -> None:
        self.teacher = teacher
        self.generator = PlainGenerator(teacher.linear.weight.detach().clone())
        self.student = QuantizedNetwork(network, bits).eval()
        self.classes = teacher.linear.weight.shape[0]
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.stored: list[tuple[Tensor, Tensor]] = []
        for norm in (m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.register_forward_hook(self._listen)
        self.of_generator = torch.optim.Adam(
            self.generator.parameters(), lr=1e-3, betas=(0.5, 0.999)
        )
        self.of_student = torch.optim.SGD(
            self.student.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        self.losses: list[float] = []

    def _listen(self, norm: Any, given: tuple[Tensor, ...], _out: Tensor) -> None:
        x = given[0]
        self.seen.append((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)))
        self.stored.append((norm.running_mean, norm.running_var))

    def run(self, steps: Iterable[int], batch: int, *, warm_up: int, together: int) -> None:
        """The planned steps."""
        for step in steps:
            for activation in self.student.modules():
                if isinstance(activation, QuantizedActivation):
                    activation.tracking = step < warm_up
            self.step(batch, learns=step >= warm_up, together=together)

    def step(self, batch: int, *, learns: bool, together: int) -> None:
        """One iteration."""
        slots = together if torch.rand(()) < 0.4 else 1
        classes = torch.randint(self.classes, (batch, slots))
        shares = torch.randn(batch, slots).softmax(dim=1)
        targets = torch.zeros(batch, self.classes).scatter_add_(1, classes, shares)
        images = self.generator(classes, shares)
        self.seen.clear()
        self.stored.clear()
        theirs = self.teacher(images)
        label = F.cross_entropy(theirs, targets)
        gaps = [
            F.mse_loss(m, mean) + F.mse_loss(v, var)
            for (m, v), (mean, var) in zip(self.seen, self.stored, strict=True)
        ]
        loss = label + 0.1 * torch.stack(gaps).mean()
        self.of_generator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.of_generator.step()
        self.losses.append(loss.item())

        ours = self.student(images.detach())
        known = F.softmax(theirs.detach() / 20, dim=1)
        divergence = F.kl_div(F.log_softmax(ours / 20, dim=1), known, reduction="mean")
        wanted = F.cross_entropy(ours, targets) + 400 * divergence
        if learns:
            self.of_student.zero_grad()
            wanted.backward()  # type: ignore[no-untyped-call]
            self.of_student.step()
        self.losses.append(wanted.item())
        self.losses.append(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))

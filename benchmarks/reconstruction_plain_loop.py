"""Genie-M's loop in its plain form: one autograd function after the other, NCHW, float32, eager.

Written from the formulas of the paper and of what it builds on (AdaRound's relaxation, QDrop's
random choice). Two Adam optimizers, one with a cosine; inputs are gathered and mixed in every step;
weights and activations are quantized by elementary operations. BatchNorm stays as it is, outside of
what is learnt.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, KEPT, PENALTY, WARM_UP = 32, 0.5, 1.0, 0.2
Planned = Callable[[int], Iterable[int]]


def rounded(x: Tensor) -> Tensor:
    """Round; the gradient passes unchanged."""
    return x + (x.round() - x).detach()


class LearntWeight(nn.Module):
    """Base codes from the first scale, kept; scale and rounding are learnt."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        flat = weight.detach().flatten(1)
        shape = (-1, *[1] * (weight.dim() - 1))
        low, high = flat.amin(1).clamp(max=0).view(shape), flat.amax(1).clamp(min=0).view(shape)
        self.top = 2**bits - 1
        self.scale = nn.Parameter(((high - low) / self.top).clamp(min=1e-8))
        scale = self.scale.detach()
        self.zero = (-low / scale).round()
        self.base = (weight.detach() / scale).floor()
        residue = weight.detach() / scale - self.base
        self.logits = nn.Parameter(-torch.log(1.2 / (residue + 0.1) - 1))
        self.hard = False

    def share(self) -> Tensor:
        return torch.clamp(torch.sigmoid(self.logits) * 1.2 - 0.1, 0, 1)

    def forward(self) -> Tensor:
        up = (self.logits >= 0).float() if self.hard else self.share()
        codes = torch.clamp(self.base + up + self.zero, 0, self.top)
        return self.scale * (codes - self.zero)


class LearntActivation(nn.Module):
    """A learned step for values of a ReLU; while learning, half of them stay as they are."""

    def __init__(self, largest: Tensor, bits: int) -> None:
        super().__init__()
        self.top = 2**bits - 1
        self.scale = nn.Parameter((largest / self.top).clamp(min=1e-8))
        self.hard = False

    def forward(self, x: Tensor) -> Tensor:
        out = rounded(torch.clamp(x / self.scale, 0, self.top)) * self.scale
        return out if self.hard else torch.where(torch.rand_like(x) < KEPT, out, x)


class Layer(nn.Module):
    """A convolution or linear with both."""

    def __init__(self, layer: Any, bits: int, activation: LearntActivation | None) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation
        self.weight = LearntWeight(layer.weight, bits)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.activation is None else self.activation(x)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.weight(), self.layer.bias)
        return F.conv2d(x, self.weight(), self.layer.bias, self.layer.stride, self.layer.padding)


class Head(nn.Module):
    """Mean over the pixels, then the linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def units_of(network: Any) -> list[nn.Module]:
    """Stem, residual blocks and head of a ResNet for CIFAR."""
    stem = nn.Sequential(network.conv1, network.bn1, nn.ReLU())
    blocks = [block for i in (1, 2, 3) for block in getattr(network, f"layer{i}")]
    return [stem, *blocks, Head(network.linear)]


@torch.no_grad()
def quantized_unit(unit: nn.Module, x: Tensor, bits: list[tuple[int, int | None]]) -> nn.Module:
    """A copy of a unit with quantizers, ranges set on what it reads.

    Args:
        unit: In eval mode.
        x: Images of its inputs.
        bits: Of the weights and the input of each of its layers; None: the input stays float.
    """
    made = copy.deepcopy(unit)
    largest: dict[str, Tensor] = {}
    layers = [(n, m) for n, m in made.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [
        module.register_forward_pre_hook(
            lambda _m, inputs, name=name: largest.__setitem__(name, inputs[0].amax())
        )
        for name, module in layers
    ]
    made(x)
    for hook in hooks:
        hook.remove()
    for (name, module), (weight, activation) in zip(layers, bits, strict=True):
        learnt = LearntActivation(largest[name], activation) if activation else None
        parent = made.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Layer(module, weight, learnt))
    return made


def learn(
    unit: nn.Module, x: Tensor, x_float: Tensor, y: Tensor, steps: int, planned: Planned
) -> float:
    """All steps of one unit; gives the share of the error that is left.

    Args:
        unit: From ``quantized_unit``.
        x: What the quantized network gives it, all images.
        x_float: What the float network gives it.
        y: What it should give.
        steps: How many.
        planned: Gives the numbers of the steps, one by one.
    """
    weights = [m for m in unit.modules() if isinstance(m, LearntWeight)]
    activations = [m for m in unit.modules() if isinstance(m, LearntActivation)]
    start = _error(unit, x, y)
    rounding = torch.optim.Adam([w.logits for w in weights], lr=1e-3)
    groups = [{"params": [w.scale for w in weights], "lr": 1e-4}]
    groups += [{"params": [a.scale for a in activations], "lr": 4e-5}] if activations else []
    scales = torch.optim.Adam(groups)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(scales, steps)
    order = _batches(len(x))
    for step in planned(steps):
        index = next(order)
        mixed = torch.where(torch.rand_like(x[index]) < KEPT, x[index], x_float[index])
        loss = (unit(mixed) - y[index]).pow(2).sum(1).mean()
        gone = (step - WARM_UP * steps) / ((1 - WARM_UP) * steps)
        if gone >= 0:
            beta = 2 + 18 * (1 - gone)
            for weight in weights:
                loss = loss + PENALTY * (1 - (2 * weight.share() - 1).abs().pow(beta)).sum()
        rounding.zero_grad()
        scales.zero_grad()
        loss.backward()
        rounding.step()
        scales.step()
        cosine.step()
    return _error(unit, x, y) / start if start else math.nan


@torch.no_grad()
def _error(unit: nn.Module, x: Tensor, y: Tensor) -> float:
    """Distance of the outputs with every rounding decided, mean over the images."""
    return float((hard_output(unit, x) - y).pow(2).sum(1).mean())


@torch.no_grad()
def hard_output(unit: nn.Module, x: Tensor) -> Tensor:
    """What the unit gives with every rounding decided and nothing left out."""
    parts = [m for m in unit.modules() if isinstance(m, LearntWeight | LearntActivation)]
    for part in parts:
        part.hard = True
    out = torch.cat([unit(piece) for piece in x.split(256)])
    for part in parts:
        part.hard = False
    return out


def _batches(count: int) -> Iterator[Tensor]:
    """Every image once per epoch."""
    while True:
        yield from torch.randperm(count).split(BATCH)

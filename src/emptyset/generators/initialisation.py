"""First weights of a generator, from a seeded source and not from the global one."""

import math

import torch
from torch import nn

from emptyset.generators.conditional_norm import LabelledNorm
from emptyset.generators.doubled_convolution import DoubledConvolution


def initialised(module: nn.Module, generator: torch.Generator, device: torch.device) -> nn.Module:
    """Draw every parameter as torch draws it for its layer.

    Uniform within ``±1/√fan_in`` for linear layers and convolutions (weights and biases), standard
    normal for embeddings, gain 1 and shift 0 for BatchNorm.

    Args:
        module: Built on the meta device, so that nothing was drawn yet.
        generator: Source of everything random, on the CPU.
        device: Where it goes.
    """
    module = module.to_empty(device="cpu")
    for part in module.modules():
        _fill(part, generator)
    return module.to(device)


@torch.no_grad()
def _fill(part: nn.Module, generator: torch.Generator) -> None:
    if isinstance(part, nn.Linear | nn.Conv2d | DoubledConvolution):
        bound = 1 / math.sqrt(part.weight[0].numel())
        part.weight.uniform_(-bound, bound, generator=generator)
        if part.bias is not None:
            part.bias.uniform_(-bound, bound, generator=generator)
    elif isinstance(part, nn.Embedding):
        part.weight.normal_(generator=generator)
    elif isinstance(part, nn.BatchNorm2d | LabelledNorm):
        part.reset_parameters()

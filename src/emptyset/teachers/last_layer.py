"""The layer that decides: what it gives are the logits, what it is given are an image's features.

Whatever speaks of a teacher's features means these, so that no two measures mean different ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PENULTIMATE, LOGITS = "penultimate", "logits"
"""What stands for the features: the last layer's input, or the logits of a network without one."""

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def last_layer(module: nn.Module, example: Tensor) -> str | None:
    """Which layer gives the logits: of all linear layers and convolutions the one called last.

    It must be a linear layer or a convolution of one pixel (MobileNetV2 of pytorchcv ends with
    one), and have one output per class. In which order layers were registered says nothing.

    Args:
        module: The network in eval mode; it is called once, without gradients.
        example: ``(N, C, H, W)`` to call it with.

    Returns:
        Its module path, or None where the layer called last is another one, or where the network
        gives no logits ``(N, K)``.
    """
    layers = {n: part for n, part in module.named_modules() if isinstance(part, _WEIGHTED)}
    called: list[str] = []

    def caller(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            called.append(name)

        return note

    handles = [part.register_forward_pre_hook(caller(name)) for name, part in layers.items()]
    try:
        with torch.no_grad():
            logits = module(example)
    finally:
        for handle in handles:
            handle.remove()
    if not called or not isinstance(logits, Tensor) or logits.dim() != 2:
        return None
    return called[-1] if outputs_of(layers[called[-1]]) == logits.shape[1] else None


def feature_vectors(given: Tensor, layer: nn.Module) -> Tensor:
    """What the last layer was given, as one vector per image.

    Args:
        given: ``(N, F)``; or a map ``(N, F, H, W)`` before a convolution, or one vector per token
            ``(N, ..., F)`` before a linear layer: these are averaged over their places.
        layer: The last layer.

    Returns:
        ``(N, F)`` [feature units].
    """
    if isinstance(layer, nn.Conv2d):
        return given.flatten(2).mean(dim=2)
    return given if given.dim() == 2 else given.flatten(1, -2).mean(dim=1)


def outputs_of(layer: nn.Module) -> int | None:
    """How many classes a layer can tell apart; None for one whose outputs see more than a place."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        return layer.out_channels
    return None

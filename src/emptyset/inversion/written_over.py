"""Networks that write over what they read, as ``x += self.body(self.norm(x))`` or ``x -= mean``.

What a hook noted would be another tensor by the time that it is looked at, and the caller's images
would be others after the call.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def read_copies(network: nn.Module, watched: Iterable[nn.Module], example: Tensor) -> int:
    """From now on, copy what the network writes over: its images, and what watched layers read.

    Args:
        network: In eval mode, the caller's own: it gets hooks.
        watched: Modules inside it.
        example: Images ``(N, C, H, W)``, as the network takes them.

    Returns:
        Number of modules that read copies.
    """
    noted: list[tuple[nn.Module, Tensor, int]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        noted.append((module, arguments[0], arguments[0]._version))

    modules = dict.fromkeys((network, *watched))
    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        with torch.no_grad():
            network(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    written = dict.fromkeys(module for module, x, version in noted if x._version != version)
    for module in written:
        module.register_forward_pre_hook(_copied)
    return len(written)


def _copied(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments[0].clone(), *arguments[1:]

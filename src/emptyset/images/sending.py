"""Tensors on their way to a device."""

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """From the CPU to a device, without waiting for what a GPU still has to do before.

    Args:
        values: Any shape; what lies on the device already comes back as it is.
        device: Where to.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    # Copies from memory that may be paged out wait for the stream, whatever they are told.
    return values.pin_memory().to(device, non_blocking=True)

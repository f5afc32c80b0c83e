"""Networks that look as if they had never been trained, before hours go into one."""

import torch
from torch import nn

from emptyset.teachers.teacher import Teacher


def untrained(teacher: Teacher) -> str | None:
    """Why the network looks new, in a sentence; None where nothing tells that it does.

    Training moves the statistics of every BatchNorm with its first batch. Without BatchNorm
    nothing can be told.
    """
    norms = [
        module
        for module in teacher.module.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms or not all(_new(norm) for norm in norms):
        return None
    return (
        f"{teacher.name}: all {len(norms)} BatchNorms have mean 0 and variance 1, as in a network "
        "that was never trained. Were its weights loaded? Name their file with --weights, or load "
        "them in the function behind --model."
    )


def _new(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return not bool(torch.any(mean)) and bool(torch.all(variance == 1))

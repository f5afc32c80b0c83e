"""Frozen BatchNorm in training mode: each batch normalises itself and moves what is stored.

A student of `batch_norm="frozen"` stores mean and 1 / deviation as fixed parameters. Here a copy of
its graph computes what ``torch.nn.BatchNorm2d`` does in training mode, on the same parameters; the
student itself goes on normalising by what is stored.
"""

import torch
from torch import Tensor, fx
from torch.nn.functional import batch_norm

from emptyset.graph.batch_norm import MOMENTUM_AND_EPSILON
from emptyset.graph.operators import parameter_of

MEAN, INVERSE_STD = "frozen_mean", "frozen_inverse_std"


def statistics(program: fx.GraphModule) -> dict[str, torch.nn.Parameter]:
    """Means and inverse deviations ``(C, 1, ...)`` of every frozen BatchNorm, by path."""
    return {
        path: parameter
        for path, parameter in program.named_parameters()
        if path.endswith((MEAN, INVERSE_STD))
    }


def normalised_by_batch(
    images: Tensor, mean: Tensor, inverse_std: Tensor, momentum: float, epsilon: float
) -> Tensor:
    """``(N, C, ...)`` activations normalised by their own statistics; moves the stored ones.

        mean <- (1 - momentum) · mean + momentum · batch's mean, the unbiased variance likewise

    Args:
        images: Activations.
        mean: Stored, C values; changed in place.
        inverse_std: ``1 / sqrt(variance + epsilon)``, C values; changed in place.
        momentum: Share of the batch.
        epsilon: Added to variances.

    Gradient:
        To ``images``, through the batch's statistics.
    """
    with torch.no_grad():
        stored = mean.detach().flatten().double()
        variance = (inverse_std.detach().flatten().double().pow(-2) - epsilon).clamp(min=0)
        moved = stored.to(images.dtype), variance.to(images.dtype)
    normalised = batch_norm(
        images, *moved, None, None, training=True, momentum=momentum, eps=epsilon
    )
    with torch.no_grad():
        mean.copy_(moved[0].view_as(mean))
        inverse_std.copy_((moved[1].double() + epsilon).rsqrt().view_as(inverse_std))
    return normalised


def move_statistics(graph: fx.Graph) -> int:
    """Let every frozen BatchNorm of a copied graph normalise by the batch; gives how many."""
    found = 0
    for centred in list(graph.nodes):
        settings = centred.meta.get(MOMENTUM_AND_EPSILON)
        if settings is None:
            continue
        mean, (scaled,) = parameter_of(centred.args[1]), centred.users
        inverse_std = parameter_of(scaled.args[1])
        with graph.inserting_before(scaled):
            normalised = graph.call_function(
                normalised_by_batch, (centred.args[0], mean, inverse_std, *settings)
            )
        scaled.replace_all_uses_with(normalised)
        graph.erase_node(scaled)
        graph.erase_node(centred)
        found += 1
    return found

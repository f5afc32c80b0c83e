"""What changes from step to step, as one table on the device: no step asks the host."""

import math

import torch
from torch import Tensor

from emptyset.reconstruction.config import Course

ADAM_FIRST, ADAM_SECOND, ADAM_EPSILON = 0.9, 0.999, 1e-8
# Columns of the table.
BETA, PENALTY, COSINE, FIRST_WEIGHT, SECOND_WEIGHT = range(5)


def step_table(course: Course) -> Tensor:
    """One row per step, ``(steps, 5)`` float32.

    Columns: β; weight of the penalty (0 in the warm-up); cosine decay of the scales' rates, 1 to 0;
    total weight of Adam's two averages so far, ``1 − 0.9^(t+1)`` and ``1 − 0.999^(t+1)``.

        β = β_end + (β_start − β_end) · (1 − (t − w) / (T − w)),   w = warm_up · T

    Source: the released code of BRECQ, QDrop and Genie (a line, whatever its comments say).
    """
    config, steps = course.config, course.steps
    step = torch.arange(steps, dtype=torch.double)
    start = config.warm_up * steps
    gone = ((step - start) / max(steps - start, 1.0)).clamp(0.0, 1.0)
    beta = config.beta_end + (config.beta_start - config.beta_end) * (1 - gone)
    penalty = torch.where(step < start, 0.0, config.penalty)
    cosine = 0.5 * (1 + torch.cos(math.pi * step / max(steps, 1)))
    first, second = 1 - ADAM_FIRST ** (step + 1), 1 - ADAM_SECOND ** (step + 1)
    return torch.stack([beta, penalty, cosine, first, second], dim=1).float()


def batch_order(course: Course, images: int, batch: int, seed: int) -> Tensor:
    """Which images each step sees, ``(steps, batch)`` int64.

    Args:
        course: ``epochs``: permutations one after the other, cut into batches (Genie); ``fresh``: a
            permutation's first images (BRECQ); ``replacement``: any, also twice (QDrop).
        images: How many there are.
        batch: At most ``images``.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = course.steps
    if course.order == "replacement":
        return torch.randint(images, (steps, batch), generator=generator)
    if course.order == "fresh":
        drawn = [torch.randperm(images, generator=generator)[:batch] for _ in range(steps)]
        return torch.stack(drawn) if drawn else torch.zeros(0, batch, dtype=torch.long)
    epochs = -(-steps * batch // images)
    drawn = [torch.randperm(images, generator=generator) for _ in range(epochs)]
    whole = torch.cat([torch.zeros(0, dtype=torch.long), *drawn])
    return whole[: steps * batch].view(steps, batch)

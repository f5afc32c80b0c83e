"""What images can be taught as: class indices or probabilities that a network of K classes has."""

import torch
from torch import Tensor

from emptyset.errors import ImagesError


def require_targets(targets: Tensor, classes: int, *, who: str, advice: str) -> None:
    """Refuse targets that a loss would stumble over, or would leave out without a word.

    Args:
        targets: ``(N,)`` class indices of an integer type, 0..K-1; or ``(N, K)`` probabilities of a
            floating-point type, finite and not negative.
        classes: K.
        who: What needs them, for the message.
        advice: What to do instead of correcting them; a sentence.

    Raises:
        ImagesError: If they are neither.
    """
    wrong = _wrong_indices(targets, classes) if targets.dim() == 1 else _wrong(targets, classes)
    if wrong:
        raise ImagesError(f"{who}: {wrong} Correct the labels. {advice}")


def _wrong_indices(targets_N: Tensor, classes: int) -> str:
    """What is wrong with class indices, a sentence; nothing where they are right."""
    kind = targets_N.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        return (
            "labels of shape (N,) are class indices and must have an integer type. Got "
            f"{_name(targets_N)}."
        )
    if not len(targets_N):
        return ""
    low, high = int(targets_N.min()), int(targets_N.max())
    if low < 0 or high >= classes:
        return (
            f"labels run from {low} to {high}, but the teacher has {classes} classes (0 to "
            f"{classes - 1})."
        )
    return ""


def _wrong(targets: Tensor, classes: int) -> str:
    """What is wrong with probabilities, a sentence; nothing where they are right."""
    if targets.dim() != 2 or targets.shape[1] != classes:
        return (
            f"the teacher has {classes} classes, so labels have shape (N,) or (N, {classes}). Got "
            f"{tuple(targets.shape)}."
        )
    if not targets.is_floating_point():
        return (
            f"labels of shape (N, {classes}) are probabilities and must have a floating-point "
            f"type. Got {_name(targets)}."
        )
    bad_N = ~(targets.isfinite() & (targets >= 0)).all(dim=1)
    if bool(bad_N.any()):
        return (
            f"{int(bad_N.sum())} of {len(targets)} soft labels hold a value that is negative or "
            f"not finite (first: image {int(bad_N.nonzero()[0])})."
        )
    return ""


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

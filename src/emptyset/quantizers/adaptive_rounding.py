"""Learnt rounding: every weight's code may be rounded down or up, and a relaxed bit tells which.

    base = floor(w / s),   r = w / s − base                      base is kept, whatever s becomes
    h(V) = clip(σ(V) · (ζ − γ) + γ, 0, 1),   ζ = 1.1, γ = −0.1   V starts where h(V) = r
    ŵ    = s · (clip(base + h(V) + z, low, high) − z)            while learning
    bit  = 1[V ≥ 0]                                              in the end, in place of h(V)
    penalty = Σ 1 − |2 h(V) − 1|^β                               0 once every h is 0 or 1

Sources: AdaRound, Nagel et al. 2020, arXiv:2004.10568; with a scale that is learnt beside a base
    that is not: Genie-M, Jeon et al. 2023, arXiv:2212.04780.
"""

import torch
from torch import Tensor

STRETCHED_LOW, STRETCHED_HIGH = -0.1, 1.1
_SPAN = STRETCHED_HIGH - STRETCHED_LOW
# On the other side of 0, where rounding half to even disagrees with ``r >= 0.5``.
_HALF = 1e-4


def split(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Base codes of a weight, and the V at which ``h(V)`` is what they leave over.

    Args:
        weight: Any shape [units of x].
        scale: Broadcastable to it [units of x per step].

    Returns:
        ``base`` int32 [step] and ``V`` float32, shaped as the weight. ``base + 1[V >= 0]`` is the
        nearest whole number as torch's fake quantizers round, ties included.
    """
    # Multiplied by the reciprocal, as torch's own kernels do.
    position = weight.detach() * (1.0 / scale)
    base = position.floor()
    residue = (position - base).clamp(0.0, 1.0)
    logits = -torch.log(_SPAN / (residue - STRETCHED_LOW) - 1)
    up = position.round() > base
    logits = torch.where(up, logits.clamp(min=0.0), logits.clamp(max=-_HALF))
    return base.to(torch.int32), logits


def rounding_share(logits: Tensor) -> Tensor:
    """``h(V)``: how far each code is rounded up, 0 to 1, shaped as ``logits``.

    Gradient: none where it is clipped.
    """
    return (torch.sigmoid(logits) * _SPAN + STRETCHED_LOW).clamp(0.0, 1.0)


def rounded_up(logits: Tensor) -> Tensor:
    """The bit that each V stands for in the end: bool, shaped as ``logits``."""
    return logits >= 0


def relaxed_weight(
    base: Tensor, share: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """``ŵ`` while rounding is learnt.

    Args:
        base: Base codes as floating point, any shape [step].
        share: ``h(V)``, shaped as ``base`` [step].
        scale: Broadcastable to ``base`` [units of x per step].
        zero_point: As ``scale`` [step].
        low: Smallest code, 0-dim.
        high: Largest code, 0-dim.

    Returns:
        Shaped as ``base`` [units of x].

    Gradient:
        To ``scale``: the code less the zero point. To ``share``: the scale where the code is in
        range, else 0.
    """
    code = torch.clamp(base + share + zero_point, low, high)
    return scale * (code - zero_point)


def rounding_penalty(share: Tensor, beta: Tensor | float) -> Tensor:
    """``Σ 1 − |2 h − 1|^β``: how many codes are still undecided, 0-dim.

    Args:
        share: ``h(V)``, any shape.
        beta: β, at least 1: large tolerates what lies between 0 and 1, small does not.
    """
    return (1 - (2 * share - 1).abs().pow(beta)).sum()

"""HAST's hard-sample-enhanced inception: images that are not yet sure of their class count more."""

from torch import Tensor


def hard_sample_loss(logits_NK: Tensor, labels_N: Tensor, *, exponent: float) -> Tensor:
    """Cross-entropy, weighted by difficulty.

        loss = mean_n (1 − p_n)^γ · (−log p_n),   p_n = softmax(logits)_n,y

    Args:
        logits_NK: ``(N, K)``.
        labels_N: y, ``(N,)`` class indices.
        exponent: γ; 0 gives plain cross-entropy.

    Returns:
        Scalar [nat].

    Gradient:
        Through the weight too. 0 from an image whose difficulty is below 1e-12.

    Source:
        HAST, Li et al. 2023, arXiv:2303.13826, eq. 5; weight not detached, as in its released
        code.
    """
    log_p = logits_NK.log_softmax(dim=1).gather(1, labels_N[:, None])[:, 0]
    difficulty = (-log_p.expm1()).clamp(min=1e-12)
    return -(difficulty**exponent * log_p).mean()

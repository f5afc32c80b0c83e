"""AdaSG's and AdaDFQ's view of student and teacher: the softmax of what their logits differ by.

    p = softmax(z_teacher − z_student)

Where both agree up to a constant, p is uniform and its entropy log K; where they differ on one
class only, p is a point and its entropy 0.
"""

import math

import torch
from torch import Tensor

# Least span of entropies that is divided by [nat]: with all of them at log K there is none.
_SMALLEST_SPAN = 1e-4


def difference_entropy(
    student_logits_NK: Tensor, teacher_logits_NK: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Entropy of the softened difference of the logits.

        H_n = −Σ_k p_nk · log p_nk,   p = softmax((z_teacher − z_student) / T)

    Args:
        student_logits_NK: ``(N, K)``.
        teacher_logits_NK: ``(N, K)``.
        temperature: T, above 0.

    Returns:
        ``(N,)`` [nat], 0..log K; log K exactly when the logits differ by a constant.
    """
    log_p = ((teacher_logits_NK - student_logits_NK) / temperature).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def adaptability_margin(
    student_logits_NK: Tensor,
    teacher_logits_NK: Tensor,
    *,
    low: float,
    high: float,
    through_minimum: bool = False,
) -> Tensor:
    """How far images lie outside the band between too much and too little disagreement.

        H'_n = (H_n − min_m H_m) / (log K − min_m H_m)
        loss = mean_n max(λ_l − H'_n, 0) + mean_n max(H'_n − λ_u, 0)

    The image of the smallest entropy has H' = 0 and always counts λ_l / N.

    Args:
        student_logits_NK: ``(N, K)``.
        teacher_logits_NK: ``(N, K)``.
        low: λ_l, 0..1.
        high: λ_u, 0..1.
        through_minimum: Let gradients pass through the batch's smallest entropy too.

    Returns:
        Scalar; 0 only where ``low`` is 0 and no image is above ``high``.

    Source:
        AdaSG, Qian et al., AAAI 2023, arXiv:2302.09572, and AdaDFQ, Qian et al., CVPR 2023,
        arXiv:2303.06869; form of the released codes.
    Differs from source:
        There gradients pass through the smallest entropy, which makes the image of the largest
        disagreement disagree still more (``through_minimum``). The span is at least 1e-4 here; the
        codes divide 0 by 0 where both networks agree on every image.
    """
    entropies = difference_entropy(student_logits_NK, teacher_logits_NK)
    least = entropies.min()
    if not through_minimum:
        least = least.detach()
    span = (math.log(student_logits_NK.shape[1]) - least).clamp(min=_SMALLEST_SPAN)
    normalised = (entropies - least) / span
    return (low - normalised).clamp(min=0.0).mean() + (normalised - high).clamp(min=0.0).mean()


def difference_flatness_loss(
    student_logits_NK: Tensor, teacher_logits_NK: Tensor, *, temperature: float
) -> Tensor:
    """What the student of AdaSG and AdaDFQ learns from: no class may stand out of the difference.

        loss = T² · (log K − mean_n H_n) = T² · mean_n Σ_k p_nk · log(K · p_nk)

    For large T this is half the variance over the classes of ``z_teacher − z_student``.

    Args:
        student_logits_NK: ``(N, K)``.
        teacher_logits_NK: ``(N, K)``.
        temperature: T, above 0.

    Returns:
        Scalar [nat, times T²]; 0 exactly when all logits differ by a constant per image.

    Source:
        AdaSG and AdaDFQ, see above. There without the constant ``T² · log K``, which has no
        gradient.
    """
    difference = (teacher_logits_NK - student_logits_NK) / temperature
    log_p = difference.log_softmax(dim=1)
    # Not log K less the entropy: at T = 20 that would cancel to noise.
    gap = (log_p.exp() * (log_p + math.log(difference.shape[1]))).sum(dim=1)
    return torch.mean(gap) * temperature**2

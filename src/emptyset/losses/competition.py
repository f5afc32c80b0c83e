"""Competition between teacher and student: images on which the two disagree."""

from torch import Tensor


def competition_loss(
    teacher_NK: Tensor,
    student_NK: Tensor,
    *,
    temperature: float = 3.0,
    limits: tuple[float, float] = (0.01, 0.99),
) -> Tensor:
    """Small where teacher and student give different classes.

        loss = 1 − min(JS, 1),   JS = mean_n ½ KL(p ‖ m) + ½ KL(q ‖ m),   m = (p + q) / 2
        p = softmax(teacher / T),  q = softmax(student / T),  all three clamped to the limits

    Args:
        teacher_NK: Logits ``(N, K)``.
        student_NK: Logits ``(N, K)``.
        temperature: T [logit units].
        limits: Least and greatest probability.

    Returns:
        Scalar [nat] in 0..1; 1 exactly where both give the same probabilities.

    Source:
        Adaptive DeepInversion, Yin et al. 2020, arXiv:1912.08795, eq. 6 to 8; temperature and
        limits of its released code.
    """
    first = (teacher_NK / temperature).softmax(dim=1)
    second = (student_NK / temperature).softmax(dim=1)
    middle = ((first + second) / 2).clamp(*limits)
    first, second = first.clamp(*limits), second.clamp(*limits)
    left = (first * (first / middle).log()).sum(dim=1)
    right = (second * (second / middle).log()).sum(dim=1)
    return 1 - ((left + right) / 2).mean().clamp(0.0, 1.0)

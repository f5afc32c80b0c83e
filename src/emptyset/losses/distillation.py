"""Distillation: the student is asked for the teacher's probabilities, softened by a temperature."""

import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("batch_mean", "mean")


def distillation_loss(
    student_logits_NK: Tensor,
    teacher_logits_NK: Tensor,
    *,
    temperature: float,
    kd_reduction: str = "batch_mean",
) -> Tensor:
    """Divergence of the student's softened probabilities from the teacher's.

        loss = T² · (1/D) Σ_n Σ_k p_nk · (log p_nk − log q_nk),   p = softmax(z_teacher / T)

    Args:
        student_logits_NK: ``(N, K)``.
        teacher_logits_NK: ``(N, K)``.
        temperature: T, above 0.
        kd_reduction: ``batch_mean``: D = N; ``mean``: D = N · K, which makes the term K times
            weaker.

    Returns:
        Scalar [nat, times T²]; 0 exactly when the probabilities agree.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, with the factor T² of the released code of GDFQ
        (``mean``) and of IntraQ (``batch_mean``).
    """
    if kd_reduction not in REDUCTIONS:
        raise ValueError(
            f"kd_reduction must be one of {', '.join(REDUCTIONS)}. Got '{kd_reduction}'."
        )
    divergence = F.kl_div(
        F.log_softmax(student_logits_NK / temperature, dim=1),
        F.log_softmax(teacher_logits_NK / temperature, dim=1),
        reduction="sum",
        log_target=True,
    )
    count, classes = student_logits_NK.shape
    divisor = count if kd_reduction == "batch_mean" else count * classes
    return divergence * (temperature**2 / divisor)

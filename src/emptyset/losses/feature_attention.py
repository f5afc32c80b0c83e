"""HAST's feature alignment: which channels matter for an image, in student and teacher."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from emptyset.errors import ImagesError


def channel_attention(features_NCHW: Tensor) -> Tensor:
    """How strongly each channel speaks, of length 1 for each image.

        a_n = v_n / ‖v_n‖₂,   v_nc = mean over positions of features²

    Args:
        features_NCHW: ``(N, C, H, W)``, or ``(N, C)`` after pooling.

    Returns:
        ``(N, C)``; 0 where an image's features are all 0.
    """
    count, channels = features_NCHW.shape[:2]
    return F.normalize(features_NCHW.square().reshape(count, channels, -1).mean(2), dim=1)


def feature_attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Squared distance of the channel attentions of matching features.

        loss = Σ_units (1 / NC) Σ_nc (a_nc^student − a_nc^teacher)²

    Args:
        student: Features ``(N, C, H, W)`` of each unit.
        teacher: The same units of the teacher, shaped alike.

    Returns:
        Scalar; 0 exactly when all attentions agree.

    Raises:
        ImagesError: If the numbers of units differ, or there is none.

    Source:
        HAST, Li et al. 2023, arXiv:2303.13826; form and place as in its released
        code.
    """
    if not student or len(student) != len(teacher):
        raise ImagesError(
            "Feature attention compares the same units of two networks. Got "
            f"{len(student)} of the student and {len(teacher)} of the teacher."
        )
    pairs = zip(student, teacher, strict=True)
    return torch.stack(
        [F.mse_loss(channel_attention(ours), channel_attention(theirs)) for ours, theirs in pairs]
    ).sum()

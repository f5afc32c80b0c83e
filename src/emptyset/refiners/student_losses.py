"""What a student in training is judged by: named, weighted losses over what both networks say."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.losses.distillation import distillation_loss
from emptyset.losses.feature_attention import feature_attention_loss
from emptyset.losses.feature_relations import feature_relation_loss
from emptyset.losses.logit_difference import difference_flatness_loss
from emptyset.refiners.course import Course

NO_LABELS = (
    "distill: the cross entropy needs labels, and these images have none. Set cross_entropy to 0, "
    "or use images that a method made for labels."
)


@dataclass(frozen=True)
class Opinions:
    """What student and teacher say of one batch.

    Attributes:
        ours: The student's logits, ``(N, K)``.
        theirs: The teacher's.
        our_bodies: What the student's residual units add, where asked for.
        their_bodies: The same of the teacher.
        our_stages: Outputs of the student's stages, where asked for.
        their_stages: The same of the teacher.
    """

    ours: Tensor
    theirs: Tensor
    our_bodies: Sequence[Tensor] = ()
    their_bodies: Sequence[Tensor] = ()
    our_stages: Sequence[Tensor] = ()
    their_stages: Sequence[Tensor] = ()


def weighted_losses(course: Course, said: Opinions, targets: Tensor | None) -> dict[str, Tensor]:
    """Every loss with a weight above 0, weighted, by name.

    Raises:
        ImagesError: If the cross entropy is asked for and there are no labels.
    """
    losses: dict[str, Tensor] = {}
    if course.distillation > 0:
        losses["distillation"] = course.distillation * distillation_loss(
            said.ours,
            said.theirs,
            temperature=course.temperature,
            kd_reduction=course.kd_reduction,
        )
    if course.cross_entropy > 0:
        if targets is None:
            raise ImagesError(NO_LABELS)
        losses["cross entropy"] = course.cross_entropy * F.cross_entropy(said.ours, targets)
    if course.feature_attention > 0:
        losses["feature attention"] = course.feature_attention * feature_attention_loss(
            said.our_bodies, said.their_bodies
        )
    if course.logit_distance > 0:
        losses["logit distance"] = course.logit_distance * F.l1_loss(said.ours, said.theirs)
    if course.flatness > 0:
        losses["flatness"] = course.flatness * difference_flatness_loss(
            said.ours, said.theirs, temperature=course.temperature
        )
    if course.relations > 0:
        losses["feature relations"] = course.relations * feature_relation_loss(
            said.our_stages, said.their_stages
        )
    return losses

"""The loss terms of published generators, as parts: GDFQ's two and ZAQ's three."""

import torch.nn.functional as F
from torch import Tensor

from emptyset.generators.judged import FEATURES, STATISTICS, STUDENT, Judged, Term
from emptyset.generators.settings import AdversarialGeneratorConfig, LabelledGeneratorConfig
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.feature_relations import feature_relation_loss


def gdfq_terms(config: LabelledGeneratorConfig) -> tuple[Term, ...]:
    """``L_G = CE(z_P, y) + α · BNS``, GDFQ's and AutoReCon's loss; terms of weight 0 left out."""
    terms = (label_term(config.label_weight), statistics_term(config.statistics_weight))
    return tuple(term for term in terms if term.weight)


def zaq_terms(config: AdversarialGeneratorConfig) -> tuple[Term, ...]:
    """``L_G = −mean|z_Q − z_P| − α · SCRM − β · mean|f_P| + ρ · CE(z_P, y)``; 0 left out."""
    terms = (
        disagreement_term(1.0),
        relation_term(config.relation_weight),
        activation_term(config.activation_weight),
        label_term(config.label_weight),
    )
    return tuple(term for term in terms if term.weight)


def label_term(weight: float) -> Term:
    """``CE(z_P, y)``: the teacher should see the label; soft labels for superposed classes."""
    return Term("cross entropy", weight, _cross_entropy)


def statistics_term(weight: float) -> Term:
    """GDFQ's distance of BatchNorm statistics (``losses/batch_norm_statistics.py``)."""
    return Term(
        "batch norm statistics",
        weight,
        lambda judged: gdfq_statistics(judged.layers),
        frozenset({STATISTICS}),
    )


def disagreement_term(weight: float) -> Term:
    """``−mean|z_Q − z_P|``: images on which the student errs."""
    return Term("disagreement", weight, _disagreement, frozenset({STUDENT}))


def relation_term(weight: float) -> Term:
    """The feature maps' relations, with a minus: images whose features the student gets wrong."""
    return Term(
        "feature relations",
        weight,
        lambda j: -feature_relation_loss(j.student_features, j.teacher_features),
        frozenset({STUDENT, FEATURES}),
    )


def activation_term(weight: float) -> Term:
    """``−mean|f_P|`` of the last stage: images that the teacher has something to say about."""
    return Term(
        "activation", weight, lambda j: -j.teacher_features[-1].abs().mean(), frozenset({FEATURES})
    )


def _cross_entropy(judged: Judged) -> Tensor:
    assert judged.targets is not None
    return F.cross_entropy(judged.teacher_logits, judged.targets)


def _disagreement(judged: Judged) -> Tensor:
    assert judged.student_logits is not None
    return -F.l1_loss(judged.student_logits, judged.teacher_logits)

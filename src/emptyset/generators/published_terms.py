"""The loss terms of generators, as parts: GDFQ's two, ZAQ's and AdaDFQ's three, similarity."""

import torch.nn.functional as F
from torch import Tensor

from emptyset.generators.judged import (
    FEATURES,
    PENULTIMATE,
    STATISTICS,
    STUDENT,
    Judged,
    Term,
)
from emptyset.generators.settings import (
    AdaptiveGeneratorConfig,
    AdversarialGeneratorConfig,
    GeneratorConfig,
    LabelledGeneratorConfig,
)
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.feature_relations import feature_relation_loss
from emptyset.losses.logit_difference import adaptability_margin
from emptyset.losses.similarity import similarity_to_others, similarity_within_classes


def gdfq_terms(config: LabelledGeneratorConfig) -> tuple[Term, ...]:
    """``L_G = CE(z_P, y) + α · BNS``, GDFQ's and AutoReCon's loss, and similarity; 0 left out."""
    terms = (
        label_term(config.label_weight),
        statistics_term(config.statistics_weight),
        *similarity_terms(config),
    )
    return tuple(term for term in terms if term.weight)


def zaq_terms(config: AdversarialGeneratorConfig) -> tuple[Term, ...]:
    """``L_G = −mean|z_Q − z_P| − α · SCRM − β · mean|f_P| + ρ · CE(z_P, y)``; 0 left out.

    Similarity comes on top, where it is wanted.
    """
    terms = (
        disagreement_term(1.0),
        relation_term(config.relation_weight),
        activation_term(config.activation_weight),
        label_term(config.label_weight),
        *similarity_terms(config),
    )
    return tuple(term for term in terms if term.weight)


def adaptive_terms(config: AdaptiveGeneratorConfig) -> tuple[Term, ...]:
    """``L_G = margin + α_ds · CE(z_P − z_Q, y) + α_as · CE(z_P + z_Q, y) + γ · BNS``; 0 left out.

    The papers' β, 1 in all settings, is in both α.
    """
    terms = (
        margin_term(config),
        difference_term(config.difference_weight),
        sum_term(config.sum_weight),
        *gdfq_terms(config),
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
        "statistics_weight",
    )


def similarity_terms(config: GeneratorConfig) -> tuple[Term, ...]:
    """Images unlike one another, and unlike those of their class (``losses/similarity.py``)."""

    def among_all(judged: Judged) -> Tensor:
        assert judged.penultimate is not None
        return similarity_to_others(judged.penultimate)

    def within_classes(judged: Judged) -> Tensor:
        assert judged.penultimate is not None
        assert judged.targets is not None
        classes = judged.teacher_logits.shape[1]
        return similarity_within_classes(judged.penultimate, judged.targets, classes)

    needs = frozenset({PENULTIMATE})
    return (
        Term("similarity", config.similarity_weight, among_all, needs),
        Term("similarity within classes", config.class_similarity_weight, within_classes, needs),
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


def margin_term(config: AdaptiveGeneratorConfig) -> Term:
    """Neither what the student knows, nor what it is lost on (``losses/logit_difference.py``)."""

    def margin(judged: Judged) -> Tensor:
        assert judged.student_logits is not None
        return adaptability_margin(
            judged.student_logits,
            judged.teacher_logits,
            low=config.entropy_low,
            high=config.entropy_high,
            through_minimum=config.legacy,
        )

    return Term("margin", config.margin_weight, margin, frozenset({STUDENT}))


def difference_term(weight: float) -> Term:
    """``CE(z_P − z_Q, y)``: the teacher should be surer of the label than the student."""
    return Term("disagreement samples", weight, _of_difference, frozenset({STUDENT}))


def sum_term(weight: float) -> Term:
    """``CE(z_P + z_Q, y)``: both together should see the label."""
    return Term("agreement samples", weight, _of_sum, frozenset({STUDENT}))


def _of_difference(judged: Judged) -> Tensor:
    assert judged.student_logits is not None
    assert judged.targets is not None
    return F.cross_entropy(judged.teacher_logits - judged.student_logits, judged.targets)


def _of_sum(judged: Judged) -> Tensor:
    assert judged.student_logits is not None
    assert judged.targets is not None
    return F.cross_entropy(judged.teacher_logits + judged.student_logits, judged.targets)


def _cross_entropy(judged: Judged) -> Tensor:
    assert judged.targets is not None
    return F.cross_entropy(judged.teacher_logits, judged.targets)


def _disagreement(judged: Judged) -> Tensor:
    assert judged.student_logits is not None
    return -F.l1_loss(judged.student_logits, judged.teacher_logits)

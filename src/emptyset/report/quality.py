"""What is told of the images themselves: the same rows in the terminal and on every page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emptyset.report.facts import percent

Quality = Mapping[str, Any]
"""What ``ImageQuality.to_json`` gives."""

_FEATURES = {"penultimate": "teacher's last features", "logits": "teacher's logits"}


@dataclass(frozen=True)
class QualityRow:
    """One measure of one or more sets of images.

    Attributes:
        name: What was measured.
        values: One text per set; a dash where it was not measured.
        remark: How to read it.
    """

    name: str
    values: list[str]
    remark: str


def quality_rows(sets: Mapping[str, Quality | None]) -> list[QualityRow]:
    """Every measure that was taken of at least one of the sets.

    Args:
        sets: What was found, by the name of the set; None where nothing was measured.
    """
    seen = features_text(list(sets.values()))
    rows = [
        QualityRow(name, [read(found or {}) for found in sets.values()], remark.format(seen=seen))
        for name, remark, read in _MEASURES
    ]
    return [row for row in rows if any(value != "–" for value in row.values)]


def distance_text(found: Quality, form: str) -> str:
    """``3.14 ± 0.02``: a BatchNorm distance and its spread over the batches.

    Args:
        found: The quality.
        form: ``sum_l2`` or ``mean_mse``.
    """
    distance = found.get("distance")
    if not distance:
        return "–"
    spread = distance[f"{form}_spread"]
    text = f"{distance[form]:.3g}"
    return text if spread is None else f"{text} ± {spread:.1g}"


def cosine_text(found: Quality, part: str, name: str) -> str:
    """Three decimals of a cosine, a dash where there is none.

    Args:
        found: The quality.
        part: ``diversity`` or ``clip``.
        name: Which of its cosines.
    """
    value = (found.get(part) or {}).get(name)
    return "–" if value is None else f"{value:.3f}"


def variance_text(found: Quality) -> str:
    """Three digits of the variance within a class, a dash where there is none."""
    value = (found.get("diversity") or {}).get("variance_within_class")
    return "–" if value is None else f"{value:.3g}"


def features_text(found: Sequence[Quality | None]) -> str:
    """What the similarities compare: the teacher's last features, or the logits of one without.

    Args:
        found: Qualities that the same teacher was asked for.
    """
    diversities = [(one or {}).get("diversity") or {} for one in found]
    kinds = {one["features"] for one in diversities if "features" in one}
    return _FEATURES[kinds.pop()] if len(kinds) == 1 else "teacher's features"


def agreement_text(found: Quality) -> str:
    """How many of the images the teacher gives the class that they were made for."""
    return percent((found.get("diversity") or {}).get("class_agreement"))


def _measure(
    name: str, remark: str, read: Callable[..., str], *arguments: str
) -> tuple[str, str, Callable[[Quality], str]]:
    return name, remark, lambda found: read(found, *arguments)


_MEASURES = [
    _measure(
        "BatchNorm distance, sum of norms",
        "from the statistics that the teacher stored, over batches; lower is nearer",
        distance_text,
        "sum_l2",
    ),
    _measure(
        "BatchNorm distance, mean of squares",
        "the same, mean over channels and layers",
        distance_text,
        "mean_mse",
    ),
    _measure(
        "similarity, all pairs",
        "cosine of the {seen}; lower is more diverse",
        cosine_text,
        "diversity",
        "similarity",
    ),
    _measure(
        "similarity within a class",
        "the same, pairs of one class",
        cosine_text,
        "diversity",
        "similarity_within_class",
    ),
    _measure(
        "similarity to all others",
        "cosine with the mean of the other images (SimLoss1)",
        cosine_text,
        "diversity",
        "similarity_to_others",
    ),
    _measure(
        "variance within a class", "of the {seen}, summed; higher is more diverse", variance_text
    ),
    _measure("class agreement", "the teacher names the label of the image", agreement_text),
    _measure(
        "CLIP similarity, all pairs",
        "cosine of CLIP's image embeddings",
        cosine_text,
        "clip",
        "similarity",
    ),
    _measure(
        "CLIP similarity within a class",
        "the same, pairs of one class",
        cosine_text,
        "clip",
        "similarity_within_class",
    ),
]

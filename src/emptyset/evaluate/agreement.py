"""How often the student says what the teacher says: an estimate of the loss without labels."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.evaluate.accuracy import Predict, require_logits
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor

_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Agreement:
    """Agreement of two networks, with bootstrap intervals (95 %).

    Attributes:
        share: Share of the images with the same first class, 0..1.
        low: Lower end of its interval.
        high: Upper end of its interval.
        kl: Mean KL(teacher ‖ student) of the softmax outputs [nat].
        kl_low: Lower end of its interval [nat].
        kl_high: Upper end of its interval [nat].
        count: Number of images.
    """

    share: float
    low: float
    high: float
    kl: float
    kl_low: float
    kl_high: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


@torch.no_grad()
def agreement(
    predict: Predict,
    teacher_predict: Predict,
    images: Images,
    *,
    seed: int,
    batch_size: int = 256,
    monitor: Monitor = SILENT,
) -> Agreement:
    """Compare two networks on the same images; only two numbers per image are kept.

    Where both networks agree on every image (or on none), resampling shows no spread. The end of
    the interval is then the exact binomial one (Clopper & Pearson 1934).

    Args:
        predict: The student.
        teacher_predict: The teacher.
        images: Images, preferably none that the student was fitted to.
        seed: Seed of the resampling.
        batch_size: Images at a time.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are no images or the outputs do not match.
    """
    same, divergences = [], []
    done = 0
    for batch in images.batches(batch_size):
        student, teacher = predict(batch.images), teacher_predict(batch.images)
        require_logits(student, len(batch.images))
        require_logits(teacher, len(batch.images))
        if student.shape != teacher.shape:
            raise ImagesError(
                f"The student has {student.shape[1]} classes, the teacher {teacher.shape[1]}."
            )
        alike = student.argmax(1) == teacher.argmax(1).to(student.device)
        # The largest of NaN is the first class for nobody.
        same.append((alike & ~student.isnan().any(1)).double().cpu())
        divergences.append(divergence(teacher, student).cpu())
        done += len(batch.images)
        monitor.advance("agreement", done, len(images))
    if not same:
        raise ImagesError("Agreement needs at least one image. Got none.")
    return _summary(torch.cat(same), torch.cat(divergences), seed)


def divergence(teacher_NK: Tensor, student_NK: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each image, ``(N,)`` double [nat]; 0 exactly when they agree.

        kl = Σ_k p_k · (log p_k − log q_k),  p = softmax(teacher), q = softmax(student)

    Args:
        teacher_NK: Logits ``(N, K)``.
        student_NK: Logits ``(N, K)``.
    """
    log_p = teacher_NK.double().log_softmax(dim=1)
    log_q = student_NK.double().to(teacher_NK.device).log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def bootstrap_interval(values_NM: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap of the means of the columns, over resampled rows.

    Args:
        values_NM: ``(N, M)``, one row per image.
        seed: Seed of the resampling.

    Returns:
        Lower and upper ends, ``(M,)`` each, in the units of the values.

    Source:
        Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    count = len(values_NM)
    generator = torch.Generator().manual_seed(seed)
    means = []
    # In parts, so that 2,000 resamples of a million images do not fill the memory.
    for start in range(0, _RESAMPLES, step := max(1, min(_RESAMPLES, (1 << 22) // count))):
        size = (min(step, _RESAMPLES - start), count)
        chosen = torch.randint(count, size, generator=generator)
        means.append(values_NM[chosen].mean(dim=1))
    tail = (1 - _CONFIDENCE) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=values_NM.dtype)
    low, high = torch.cat(means).quantile(ends, dim=0)
    return low, high


def _summary(same_N: Tensor, divergences_N: Tensor, seed: int) -> Agreement:
    count = len(same_N)
    low, high = bootstrap_interval(torch.stack([same_N, divergences_N], dim=1), seed=seed)
    share, share_low, share_high = same_N.mean().item(), low[0].item(), high[0].item()
    # Clopper and Pearson: with n of n, the lower end solves low^n = (1 - confidence) / 2.
    exact = ((1 - _CONFIDENCE) / 2) ** (1 / count)
    if share == 1.0:
        share_low = exact
    elif share == 0.0:
        share_high = 1 - exact
    return Agreement(
        share=share,
        low=share_low,
        high=share_high,
        kl=divergences_N.mean().item(),
        kl_low=low[1].item(),
        kl_high=high[1].item(),
        count=count,
    )

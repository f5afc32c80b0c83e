"""Keep the images that the teacher's free energy calls in-distribution.

Papers: Li et al., "GenQ: Quantization in Low Data Regimes with Generative Synthetic Data", ECCV
    2024, arXiv:2312.05272, eq. 5; the score, Liu et al. 2020, arXiv:2010.03759.
Idea: an image has low energy where the teacher gives some class a high logit; the share with the
    lowest energy is kept.
Needs: a classifier. No labels, except for ``per_class``.
Differs from source: GenQ prints E = −α Σ_i exp(−f_i / α), without the logarithm and with the sign
    of the exponent turned round: the most negative logits then decide. The default is the form of
    Liu et al.; ``printed`` gives the other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import ImageSet
from emptyset.registry import selectors
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """Settings of the energy filter.

    Attributes:
        keep: Share of the images to keep, above 0 up to 1.
        temperature: α of the score [logit units].
        per_class: Keep this share of every class: of the images' targets, or of the teacher's
            predictions where there are none.
        printed: Use the score as GenQ prints it.
        batch_size: Images at a time. Ours.
    """

    keep: float = 0.5
    temperature: float = 1.0
    per_class: bool = False
    printed: bool = False
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"'keep' must be above 0 and at most 1. Got {self.keep}.")
        if not self.temperature > 0:
            raise ValueError(f"'temperature' must be positive. Got {self.temperature}.")
        if self.batch_size < 1:
            raise ValueError(f"'batch_size' must be at least 1. Got {self.batch_size}.")

    @classmethod
    def smallest(cls) -> "EnergyConfig":
        """Small batches."""
        return cls(batch_size=3)


@selectors.register(
    "energy",
    EnergyConfig,
    sentence="Keeps the images with the lowest free energy under the teacher.",
    source="GenQ, Li et al. 2024, arXiv:2312.05272; Liu et al. 2020, arXiv:2010.03759",
)
@dataclass(frozen=True)
class Energy:
    """See the module docstring."""

    config: EnergyConfig

    def select(self, images: ImageSet, teacher: Teacher) -> ImageSet:
        """The kept images in their old order, with the score ``energy`` [logit units].

        Raises:
            ImagesError: If an image's energy is not finite.
        """
        energies, predictions = self._scores(images, teacher)
        groups = torch.zeros(len(images), dtype=torch.long)
        if self.config.per_class:
            targets = images.targets
            if targets is None:
                groups = predictions
            else:
                groups = targets if targets.dim() == 1 else targets.argmax(dim=1)
        kept = keep_lowest(energies, groups, self.config.keep)
        entry = {
            "stage": "select",
            "method": "energy",
            "settings": {
                "keep": self.config.keep,
                "temperature": self.config.temperature,
                "per_class": self.config.per_class,
                "printed": self.config.printed,
            },
            "teacher": teacher.weights_hash,
            "of": len(images),
            "count": len(kept),
        }
        scored = ImageSet(
            images.images, images.targets, {**images.scores, "energy": energies}, images.history
        )
        return scored.subset(kept, entry=entry)

    @torch.no_grad()
    def _scores(self, images: ImageSet, teacher: Teacher) -> tuple[Tensor, Tensor]:
        device = teacher.example(1).device
        score = printed_energy if self.config.printed else free_energy
        energies, predictions = [], []
        for batch in images.batches(self.config.batch_size):
            logits = teacher.module(batch.images.to(device, copy=True)).float().cpu()
            energies.append(score(logits, self.config.temperature))
            predictions.append(logits.argmax(dim=1))
        energies_N = torch.cat(energies)
        bad = (~torch.isfinite(energies_N)).nonzero().flatten().tolist()
        if bad:
            advice = " Use the form without `printed`." if self.config.printed else ""
            raise ImagesError(
                f"energy: the score of {len(bad)} of {len(images)} images is not finite (first: "
                f"image {bad[0]}).{advice}"
            )
        return energies_N, torch.cat(predictions)


def free_energy(logits_NK: Tensor, temperature: float) -> Tensor:
    """Free energy of each image, low where the teacher knows it.

        E = −α · log Σ_k exp(f_k / α)

    Args:
        logits_NK: f, ``(N, K)``.
        temperature: α [logit units].

    Returns:
        ``(N,)`` [logit units].

    Source:
        Liu et al. 2020, arXiv:2010.03759, eq. 4.
    """
    return -temperature * torch.logsumexp(logits_NK / temperature, dim=1)


def printed_energy(logits_NK: Tensor, temperature: float) -> Tensor:
    """The score as GenQ prints it; overflows for logits below about −88 α.

        E = −α · Σ_k exp(−f_k / α)

    Args:
        logits_NK: f, ``(N, K)``.
        temperature: α [logit units].

    Returns:
        ``(N,)`` [logit units].

    Source:
        Li et al. 2024, arXiv:2312.05272, eq. 5.
    """
    return -temperature * torch.exp(-logits_NK / temperature).sum(dim=1)


def keep_lowest(scores_N: Tensor, groups_N: Tensor, share: float) -> Tensor:
    """Positions of the lowest ``share`` of every group, rounded up, ascending.

    Args:
        scores_N: ``(N,)``; equal scores keep the earlier image.
        groups_N: ``(N,)`` integers.
        share: Above 0 up to 1; at least one image of every group stays.

    Returns:
        ``(M,)`` ascending positions.
    """
    kept = []
    for group in sorted(set(groups_N.tolist())):
        members = (groups_N == group).nonzero().flatten()
        order = scores_N[members].argsort(stable=True)
        # 0.1 · 30 is 3.0000000000000004 in binary: a hair must not round up to 4.
        count = max(1, math.ceil(share * len(members) - 1e-9))
        kept.append(members[order[:count]])
    return torch.cat(kept).sort().values

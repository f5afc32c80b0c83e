"""What a generator's latent is made of: noise alone, or noise and the embeddings of classes."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from emptyset.generators.class_mixture import ClassMixture

NOISES = ("after_mapping", "per_slot")
Drawn = dict[str, Tensor]


class Condition(Protocol):
    """The part of a generator before its backbone.

    Attributes:
        latent: Length of the latents it gives.
    """

    latent: int

    def draw(self, generator: torch.Generator, mixture: ClassMixture, soft: Tensor) -> Drawn:
        """What a forward needs of these labels, with its noise, on the CPU."""

    def __call__(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """``(N, latent)`` from what was drawn."""


def _noise(generator: torch.Generator, count: int, length: int) -> Tensor:
    return torch.randn(count, length, generator=generator)


class NoiseAlone(nn.Module):
    """``latent = z``, z ~ N(0, I): labels, if any, enter through BatchNorm."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def draw(self, generator: torch.Generator, mixture: ClassMixture, soft: Tensor) -> Drawn:
        """The noise ``(N, latent)``."""
        return {"noise": _noise(generator, len(soft), self.latent)}

    def forward(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """``(N, latent)``."""
        return drawn["noise"]


class ScaledEmbedding(nn.Module):
    """``latent = E_y ∘ z``: the embedding of the class scales the noise.

    Source: GDFQ, Xu et al. 2020, arXiv:2003.03603, released code (the paper leaves it open).
    """

    def __init__(self, classes: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.embedding = nn.Embedding(classes, latent)

    def draw(self, generator: torch.Generator, mixture: ClassMixture, soft: Tensor) -> Drawn:
        """The noise ``(N, latent)`` and the shares of the classes ``(N, C)``."""
        return {"noise": _noise(generator, len(soft), self.latent), "soft": soft}

    def forward(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """``(N, latent)``."""
        return (drawn["soft"] @ self.embedding.weight) * drawn["noise"]


class SuperposedEmbedding(nn.Module):
    """Qimera's latent: the superposition of the mapped embeddings of K classes, and noise.

        after_mapping:  latent = z + Σ_k λ_k M(e_k)                      (eq. 8, section 4.3)
        per_slot:       latent = Σ_k λ_k M(normalise(e_k + z_k))         (released code)

    M is one linear layer (disentanglement mapping), or the identity. ``normalise`` has no
    parameters: each image's D values have mean 0 and variance 1 where it shows one class; of
    superposed ones all values of slot k have, over the batch.

    Source: Qimera, Choi et al. 2021, arXiv:2111.02625, sections 4.2 and 4.3. Whether M has an
        activation is not said; the released code has none.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        *,
        mapped: int | None,
        noise: str = "after_mapping",
        epsilon: float = 1e-5,
    ) -> None:
        """Build it; ``initialised`` gives it values.

        Args:
            classes: C.
            width: D, length of an embedding.
            mapped: d, length after the mapping; None: no mapping.
            noise: ``after_mapping`` or ``per_slot``.
            epsilon: Of the normalisation.
        """
        super().__init__()
        self.latent = width if mapped is None else mapped
        self.embedding = nn.Embedding(classes, width)
        self.mapping = nn.Identity() if mapped is None else nn.Linear(width, mapped)
        self._noise, self._epsilon = noise, epsilon

    def draw(self, generator: torch.Generator, mixture: ClassMixture, soft: Tensor) -> Drawn:
        """Noise and shares; ``per_slot`` needs the slots one by one."""
        if self._noise == "after_mapping":
            return {"noise": _noise(generator, len(soft), self.latent), "soft": soft}
        size = (*mixture.classes.shape, self.embedding.embedding_dim)
        return {
            "noise": torch.randn(size, generator=generator),
            "classes": mixture.classes,
            "shares": mixture.shares,
        }

    def forward(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """``(N, latent)``."""
        noise = drawn["noise"]
        if self._noise == "after_mapping":
            # The shares times the mapped table: M runs once per class, not once per slot.
            mapped: Tensor = self.mapping(self.embedding.weight)
            return drawn["soft"] @ mapped + noise
        slots = self._normalised(self.embedding(drawn["classes"]) + noise)
        latents: Tensor = (drawn["shares"][:, :, None] * self.mapping(slots)).sum(dim=1)
        return latents

    def _normalised(self, slots_NKD: Tensor) -> Tensor:
        axes = (2,) if slots_NKD.shape[1] == 1 else (0, 2)
        variance, mean = torch.var_mean(slots_NKD, dim=axes, correction=0, keepdim=True)
        return (slots_NKD - mean) * (variance + self._epsilon).rsqrt()


def extract_embeddings(
    condition: SuperposedEmbedding, weight_CD: Tensor, *, frozen: bool, spread: float | None
) -> None:
    """Extracted-embedding initialisation: the classifier's rows are the centres of the classes.

        E(y) = s · w_y

    Args:
        condition: Changed in place.
        weight_CD: Weight of the teacher's last layer, ``(C, D)``.
        frozen: Keep them; otherwise they are trained on.
        spread: Standard deviation over the classes that one factor s gives them, a mean over the D
            columns; None: s = 1.

    Source: Qimera, section 4.4, with s = 1.
    """
    std = float(weight_CD.std(dim=0).mean())
    # Rows without a difference between them have no spread to change.
    scale = 1.0 if spread is None or not std else spread / std
    with torch.no_grad():
        condition.embedding.weight.copy_(weight_CD * scale)
    condition.embedding.weight.requires_grad_(not frozen)

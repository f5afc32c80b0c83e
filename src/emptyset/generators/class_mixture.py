"""Which classes a generated image is to show: one, or several superposed.

A label is always a mixture: class indices and their shares. One class is a mixture of one.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassMixture:
    """Labels of a batch.

    Attributes:
        classes: ``(N, K)`` class indices; one may appear twice in a row.
        shares: ``(N, K)``; each row sums to 1.
    """

    classes: Tensor
    shares: Tensor

    def soft(self, count: int) -> Tensor:
        """Probability of each of ``count`` classes, ``(N, C)``: ``Σ_k λ_k onehot(y_k)``."""
        empty = torch.zeros(len(self.classes), count, dtype=self.shares.dtype)
        return empty.to(self.shares.device).scatter_add_(1, self.classes, self.shares)


class LabelSampler(Protocol):
    """Draws the labels of a batch, on the CPU."""

    def draw(
        self, generator: torch.Generator, count: int, *, superposed: bool | None = None
    ) -> ClassMixture:
        """Labels of ``count`` images; ``superposed`` decides what chance decides otherwise."""

    @property
    def superposed_share(self) -> float:
        """How much of what is drawn is superposed, 0..1."""

    @property
    def together(self) -> int:
        """K of a superposed label; 1 where there is none."""


@dataclass(frozen=True)
class SingleClasses:
    """Every image shows one class, each as likely as any other (GDFQ).

    Attributes:
        classes: C.
    """

    classes: int

    superposed_share = 0.0
    together = 1

    def draw(
        self, generator: torch.Generator, count: int, *, superposed: bool | None = None
    ) -> ClassMixture:
        """``(N, 1)`` labels, drawn with replacement."""
        del superposed
        classes = torch.randint(self.classes, (count, 1), generator=generator)
        return ClassMixture(classes, torch.ones(count, 1))


@dataclass(frozen=True)
class SuperposedClasses:
    """Batches of superposed classes among batches of single ones (Qimera).

        λ = softmax(p),  p ~ N(0, I_K);   P(a batch is superposed) = ``superposed_share``

    Source: Qimera, Choi et al. 2021, arXiv:2111.02625, eq. 7 and 9, section 5.1.

    Attributes:
        classes: C.
        together: K, how many classes one image shows.
        superposed_share: The paper's p, probability of a superposed batch.
        replacement: Draw the K classes with replacement, as the released code: one class twice then
            counts with both shares.
    """

    classes: int
    together: int
    superposed_share: float
    replacement: bool = True

    def draw(
        self, generator: torch.Generator, count: int, *, superposed: bool | None = None
    ) -> ClassMixture:
        """``(N, K)`` labels, or ``(N, 1)``."""
        # Drawn in any case, so that what follows does not depend on whether it was asked for.
        chance = float(torch.rand((), generator=generator)) < self.superposed_share
        if not (chance if superposed is None else superposed):
            return SingleClasses(self.classes).draw(generator, count)
        shape = (count, self.together)
        if self.replacement:
            classes = torch.randint(self.classes, shape, generator=generator)
        else:
            order = torch.rand(count, self.classes, generator=generator).argsort(dim=1)
            classes = order[:, : self.together]
        return ClassMixture(classes, torch.randn(shape, generator=generator).softmax(dim=1))

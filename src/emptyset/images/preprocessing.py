"""What image files need to know of a teacher's input, without knowing teachers."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Preprocessing(Protocol):
    """Size and normalisation that a network expects; ``teachers.teacher.InputSpec`` is one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` [pixels]."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel [pixel units, 0..1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel [pixel units, 0..1]."""

    @property
    def resize(self) -> int | None:
        """Shorter side before the centre crop [pixels]; None: straight to ``(H, W)``."""

    @property
    def interpolation(self) -> str:
        """``bilinear`` or ``bicubic``."""

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(N, C, H, W)`` pixels in 0..1 to the network's normalised units."""


def other_constants(told: Mapping[str, Any], spec: Preprocessing) -> tuple[str, str, str] | None:
    """``mean`` or ``std`` where a record names another than the network's, with both as text.

    Args:
        told: What was recorded when images or a generator were made; older records do not tell.
        spec: What the network takes.
    """
    for name in ("mean", "std"):
        own = list(getattr(spec, name))
        if told.get(name, own) != own:
            made, taken = (",".join(f"{v:g}" for v in values) for values in (told[name], own))
            return name, made, taken
    return None

"""What image files need to know of a teacher's input, without knowing teachers."""

from typing import Protocol

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

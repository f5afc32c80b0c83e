"""Commands that compute: how the processor does it while they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand


class Computing(TyperCommand):
    """A command that runs with denormal numbers taken as zero."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with denormals_as_zero():
            return super().invoke(ctx)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1.2e-38 are zero meanwhile, in this thread and in all that it starts.

    A processor computes with them in microcode. Gradients of images reach that far down where
    depthwise convolutions follow each other, and one of these then took 194 ms instead of 6:
    a whole step of inverting MobileNetV1 0.25 takes a third more processor time.

    A thread hands its mode down to those that it starts, so this comes before torch has started
    any. Elsewhere than on x86 and ARM nothing changes.
    """
    import torch

    before = _as_zero()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _as_zero() -> bool:
    import torch

    return float(torch.tensor(1e-38) * 0.1) == 0.0

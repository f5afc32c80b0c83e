"""The layers of a network as a choice: their sizes, and the bits each of them may have."""

from collections.abc import Iterable
from dataclasses import dataclass

from emptyset.errors import RecipeError
from emptyset.quantizers.bits import LARGEST, SMALLEST

# What is tried where nothing else is said, and on how many images.
WEIGHTS = (2, 3, 4, 8)
COUNT = 256
FLOAT_BITS = 32


@dataclass(frozen=True)
class Option:
    """Bits that a layer may have, and what they cost the network.

    Attributes:
        weights: Bits of one weight.
        inputs: Bits of one input value, or None: the plan leaves the input in float.
        damage: KL divergence of the teacher's predictions to those of the network in which only
            this layer is quantized, mean over images [nat].
    """

    weights: int
    inputs: int | None
    damage: float


@dataclass(frozen=True)
class Layer:
    """One convolution or linear, and what it may become.

    Attributes:
        name: Module path.
        operator: For example ``conv2d``.
        weight_count: Number of weights.
        macs: Products that are summed up for one image.
        free_weights: Whether the plan lets the weights follow the bits that are asked for.
        options: What may be chosen; exactly one where the plan leaves nothing to choose.
    """

    name: str
    operator: str
    weight_count: int
    macs: int
    free_weights: bool
    options: tuple[Option, ...] = ()


def checked_widths(name: str, widths: Iterable[int]) -> tuple[int, ...]:
    """Bit widths, each once, smallest first.

    Raises:
        RecipeError: If there are none, or one is out of range.
    """
    given = tuple(sorted(set(widths)))
    bad = [width for width in given if not SMALLEST <= width <= LARGEST]
    if bad or not given:
        came = f"Got {bad[0]}." if bad else "Got an empty list."
        raise RecipeError(
            f"{name}: expected bit widths from {SMALLEST} to {LARGEST}, for "
            f"example [2, 4, 8]. {came}"
        )
    return given

"""Bit widths as people write them: ``w4a8`` is 4-bit weights and 8-bit activations."""

import re
from dataclasses import dataclass

from emptyset.errors import BitsError

SMALLEST, LARGEST = 2, 8


@dataclass(frozen=True)
class Bits:
    """Word lengths of weights and activations.

    Attributes:
        weights: Bits of one weight, 2 to 8.
        activations: Bits of one activation, 2 to 8.
    """

    weights: int
    activations: int

    def __post_init__(self) -> None:
        for name, bits in (("weights", self.weights), ("activations", self.activations)):
            if not SMALLEST <= bits <= LARGEST:
                raise BitsError(
                    f"bits: {name} must have {SMALLEST} to {LARGEST} bits. Got {bits}. "
                    "Write for example w8a8, w4a8, w4a4, w3a3 or w2a4."
                )

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"

    @staticmethod
    def parse(text: "str | Bits") -> "Bits":
        """``Bits`` from text such as ``w4a8``.

        Raises:
            BitsError: If the text has another form, or a width is out of range.
        """
        if isinstance(text, Bits):
            return text
        match = re.fullmatch(r"w(\d+)a(\d+)", str(text).strip().lower())
        if match is None:
            raise BitsError(
                f"bits: expected w<bits>a<bits>, weights first, got '{text}'. "
                "Write for example w8a8, w4a8, w4a4, w3a3 or w2a4."
            )
        return Bits(int(match[1]), int(match[2]))

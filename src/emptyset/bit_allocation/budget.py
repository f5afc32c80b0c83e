"""What a plan may cost: bytes in the file, bits of a weight on average, or bit operations.

=============  ===================================================================
``0.6``        weights take at most 0.6 of the bytes that they take at 8 bits
``150kB``      weights take at most 150,000 bytes (B, kB, MB, GB of 1,000)
``4.5bits``    4.5 bits a weight, average over the layers whose weights may be chosen
``0.4xBOPs``   0.4 of the bit operations of w8a8 on the same plan
``30GBOPs``    30 * 10^9 bit operations for one image (BOPs, kBOPs ... TBOPs)
=============  ===================================================================

Bytes are counted as the ONNX file stores them: weights of 2 to 4 bits take 4 bits, wider ones 8,
because the format has no type between. Average bits and bit operations count every width as it is.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from emptyset.bit_allocation.layers import FLOAT_BITS, Layer, Option
from emptyset.errors import RecipeError

STORED_WIDTHS = (4, 8)
FULL_WIDTH = 8

Kind = Literal["size", "average_bits", "bit_operations"]

_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_FORM = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", re.IGNORECASE)
_EXAMPLES = "Write for example 0.6 (of the 8-bit size), 150kB, 4.5bits, 0.4xBOPs or 30GBOPs."


@dataclass(frozen=True)
class Budget:
    """An upper limit for a plan.

    Attributes:
        kind: What is counted: ``size``, ``average_bits`` or ``bit_operations``.
        amount: The limit: a share of w8a8 where ``relative``, else bytes, bits or operations.
        relative: Whether ``amount`` is a share.
        text: As it was written, without spaces.
    """

    kind: Kind
    amount: Fraction
    relative: bool
    text: str

    def __str__(self) -> str:
        return self.text

    @staticmethod
    def parse(text: "str | float | Budget") -> "Budget":
        """A budget from text such as ``0.6``, ``150kB``, ``4.5bits`` or ``0.4xBOPs``.

        Raises:
            RecipeError: If the text has another form, or the limit is no limit.
        """
        if isinstance(text, Budget):
            return text
        written = str(text).strip()
        match = _FORM.fullmatch(written)
        unit = match[2].lower() if match else ""
        if match is None:
            raise RecipeError(f"budget: expected a number and a unit, got '{text}'. {_EXAMPLES}")
        amount, plain = Fraction(match[1]), f"{match[1]}{match[2]}"
        if unit in ("", "x"):
            return _share("size", amount, plain)
        if unit == "xbops":
            return _share("bit_operations", amount, plain)
        if unit in ("bit", "bits"):
            if amount > FULL_WIDTH:
                raise RecipeError(
                    f"budget: weights have at most {FULL_WIDTH} bits, got '{text}'. {_EXAMPLES}"
                )
            return _positive(Budget("average_bits", amount, False, plain))
        if unit.endswith("bops") and unit[:-4] in _THOUSANDS:
            whole = amount * _THOUSANDS[unit[:-4]]
            return _positive(Budget("bit_operations", whole, False, plain))
        if unit.endswith("b") and unit[:-1] in _THOUSANDS:
            return _positive(Budget("size", amount * _THOUSANDS[unit[:-1]], False, plain))
        raise RecipeError(f"budget: unknown unit '{match[2]}' in '{text}'. {_EXAMPLES}")

    def cost(self, layer: Layer, option: Option) -> int:
        """What one layer adds to the sum that is limited, a whole number.

        Bits of weights for a size or an average (which leaves out weights that the plan fixes),
        operations for bit operations.
        """
        if self.kind == "size":
            return layer.weight_count * stored_bits(option.weights)
        if self.kind == "average_bits":
            return layer.weight_count * option.weights if layer.free_weights else 0
        return bit_operations(layer, option)

    def limit(self, layers: Sequence[Layer]) -> int:
        """The largest sum of ``cost`` that is allowed."""
        if self.relative:
            return int(self.amount * self._full(layers))
        if self.kind == "size":
            return int(self.amount * 8)
        if self.kind == "average_bits":
            return int(self.amount * _free_weights(layers))
        return int(self.amount)

    def value(self, cost: int, layers: Sequence[Layer]) -> float:
        """A sum of ``cost`` in the unit that the budget was written in (share, bytes, bits ...)."""
        if self.relative:
            return cost / self._full(layers)
        if self.kind == "size":
            return cost / 8
        return cost / _free_weights(layers) if self.kind == "average_bits" else float(cost)

    def told(self, cost: int, layers: Sequence[Layer]) -> str:
        """A sum of ``cost`` as a budget that allows it, rounded up, for messages."""
        value = self.value(cost, layers)
        if self.relative:
            share = -(-cost * 10_000 // self._full(layers)) / 10_000
            return f"{share:g}{'xBOPs' if self.kind == 'bit_operations' else ''}"
        if self.kind == "average_bits":
            return f"{-(-cost * 1000 // _free_weights(layers)) / 1000:g}bits"
        return f"{-(-int(cost) // 8)}B" if self.kind == "size" else f"{value:.0f}BOPs"

    def useful(self, weights: Iterable[int]) -> tuple[int, ...]:
        """The widths worth trying: of those that are stored alike only the widest."""
        if self.kind != "size":
            return tuple(weights)
        widest = {stored_bits(width): width for width in sorted(weights)}
        return tuple(sorted(widest.values()))

    def _full(self, layers: Sequence[Layer]) -> int:
        """The sum of ``cost`` at w8a8; what the plan leaves in float stays float there too."""
        total = 0
        for layer in layers:
            inputs = None if layer.options[0].inputs is None else FULL_WIDTH
            total += self.cost(layer, Option(FULL_WIDTH, inputs, 0.0))
        return total


def stored_bits(weights: int) -> int:
    """Bits that one weight takes in the ONNX file."""
    return next(width for width in STORED_WIDTHS if width >= weights)


def bit_operations(layer: Layer, option: Option) -> int:
    """Multiplications of single bits for one image: macs * bits of weight * bits of input.

    An input in float counts 32 bits. Products of two activations (attention) are no layer and not
    counted: no choice here changes them.

    Source: HAWQ-V3, Yao et al. 2021, arXiv:2011.10680, the constraint BOPS of its integer
        programme.
    """
    inputs = FLOAT_BITS if option.inputs is None else option.inputs
    return layer.macs * option.weights * inputs


def _free_weights(layers: Sequence[Layer]) -> int:
    return sum(layer.weight_count for layer in layers if layer.free_weights)


def _share(kind: Kind, amount: Fraction, text: str) -> Budget:
    if not 0 < amount <= 1:
        raise RecipeError(
            f"budget: a share of the 8-bit {'size' if kind == 'size' else 'operations'} is more "
            f"than 0 and at most 1, got '{text}'. {_EXAMPLES}"
        )
    return Budget(kind, amount, True, text)


def _positive(budget: Budget) -> Budget:
    if budget.amount <= 0:
        raise RecipeError(f"budget: expected more than 0, got '{budget.text}'. {_EXAMPLES}")
    return budget

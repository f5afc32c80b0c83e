"""Plans as points: what each costs and what it does, and the best of them for a row of budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emptyset.bit_allocation.budget import Budget, bit_operations, stored_bits
from emptyset.bit_allocation.freedom import Freedom, override, pattern
from emptyset.bit_allocation.integer_programme import best_choice, lowest_cost
from emptyset.bit_allocation.layers import Layer, Option
from emptyset.errors import RecipeError
from emptyset.monitor import SILENT, Monitor
from emptyset.quantizers.bits import SMALLEST

BUDGETS = 33


@dataclass(frozen=True)
class Allocation:
    """Bits for every layer, what they cost and what they do.

    Attributes:
        overrides: What `prepare` takes as ``overrides``: bits of every layer that the plan leaves
            free, by pattern of its path.
        size_bytes: Bytes of all weights in the ONNX file (4 or 8 bits each).
        packed_bytes: Bytes of all weights if every width were stored as it is.
        average_bits: Bits of a weight, average over the layers whose weights are free.
        bit_operations: Sum over layers of macs * bits of weight * bits of input, for one image.
        cost: What the budget limits, in the budget's unit.
        predicted: Sum of the damages of every layer alone, mean over images [nat].
        measured: KL divergence of the teacher's predictions to the student's, with every quantizer
            on and ranges as calibrated, mean over images [nat]; None where it was not measured.
    """

    overrides: dict[str, str]
    size_bytes: float
    packed_bytes: float
    average_bits: float
    bit_operations: int
    cost: float
    predicted: float
    measured: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    """All that decides which allocations there are.

    Attributes:
        layers: Every layer with its options, in order of execution.
        freedom: What the plan leaves open, by layer path.
        budget: What is limited.
        activations: Bits of inputs that the plan is asked for.
    """

    layers: Sequence[Layer]
    freedom: Mapping[str, Freedom]
    budget: Budget
    activations: int

    def costs(self) -> list[list[int]]:
        """What every option of every layer adds to the limited sum."""
        return [[self.budget.cost(layer, o) for o in layer.options] for layer in self.layers]

    def limit(self) -> int:
        """The budget's limit, of what `Budget.cost` counts.

        Raises:
            RecipeError: If there is nothing to choose, or no choice is within the limit; the
                message names the least that can be reached.
        """
        if not any(free.weights or free.inputs for free in self.freedom.values()):
            raise RecipeError(
                "mixed_precision: the plan and its overrides fix the bits of every layer, so there "
                "is nothing to choose. Remove overrides, or take a plan that leaves inner layers "
                "free."
            )
        budget, layers = self.budget, self.layers
        if budget.kind == "average_bits" and not any(layer.free_weights for layer in layers):
            raise RecipeError(
                f"mixed_precision.budget: {budget} limits the average bits of weights, but the "
                "weights of every layer are fixed. Limit bit operations instead, for example "
                "0.5xBOPs."
            )
        limit, least = budget.limit(layers), lowest_cost(self.costs())
        if least > limit:
            raise RecipeError(
                f"mixed_precision.budget: {budget} cannot be met: the least that these widths "
                f"reach is {budget.told(least, layers)}. Give at least that{self._advice()}."
            )
        return limit

    def _advice(self) -> str:
        """How to go lower still, where that is possible."""
        if self.budget.kind == "size":
            return (
                " (the file stores no weight in fewer than 4 bits; `4bits` and the like count "
                "every width as it is)"
            )
        if self.budget.kind == "bit_operations":
            return ", or allow narrower inputs with mixed_precision.activations"
        narrowest = min(o.weights for layer in self.layers for o in layer.options)
        more = ", or allow narrower weights with mixed_precision.weights"
        return more if narrowest > SMALLEST else ""

    def best(self, limit: int) -> list[Option]:
        """The option of every layer that together do least damage within the limit."""
        damages = [[option.damage for option in layer.options] for layer in self.layers]
        chosen = best_choice(damages, self.costs(), limit)
        return [layer.options[o] for layer, o in zip(self.layers, chosen, strict=True)]

    def allocation(self, chosen: Sequence[Option], measured: float | None = None) -> Allocation:
        """What these options cost and do."""
        pairs = list(zip(self.layers, chosen, strict=True))
        free = [(layer, option) for layer, option in pairs if layer.free_weights]
        weights = sum(layer.weight_count for layer, _ in free)
        bits = sum(layer.weight_count * option.weights for layer, option in free)
        return Allocation(
            overrides={
                pattern(layer.name): override(option.weights, option.inputs, self.activations)
                for layer, option in pairs
                if self.freedom[layer.name].weights or self.freedom[layer.name].inputs
            },
            size_bytes=sum(la.weight_count * stored_bits(o.weights) for la, o in pairs) / 8,
            packed_bytes=sum(la.weight_count * o.weights for la, o in pairs) / 8,
            average_bits=bits / weights if weights else 0.0,
            bit_operations=sum(bit_operations(layer, option) for layer, option in pairs),
            cost=self.budget.value(self._cost(chosen), self.layers),
            predicted=sum(option.damage for option in chosen),
            measured=measured,
        )

    def frontier(self, *, monitor: Monitor = SILENT) -> list[Allocation]:
        """The best allocations for budgets from the smallest to the largest that matters.

        Source: the Pareto frontier of ZeroQ, Cai et al. 2020, arXiv:2001.00281.
        """
        low, high = lowest_cost(self.costs()), self._cost(self.best(self._highest()))
        found: dict[int, list[Option]] = {}
        for index in range(BUDGETS):
            limit = low + (high - low) * index // (BUDGETS - 1)
            chosen = self.best(limit)
            found.setdefault(self._cost(chosen), chosen)
            monitor.advance("frontier", index + 1, BUDGETS)
        return [self.allocation(found[cost]) for cost in sorted(found)]

    def _highest(self) -> int:
        return sum(max(options) for options in self.costs())

    def _cost(self, chosen: Sequence[Option]) -> int:
        pairs = zip(self.layers, chosen, strict=True)
        return sum(self.budget.cost(layer, option) for layer, option in pairs)

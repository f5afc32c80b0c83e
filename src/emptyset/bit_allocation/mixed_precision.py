"""A plan of bits, layer by layer, that meets a budget with least predicted damage.

Every layer is measured alone at every width it may have (`sensitivity.py`); the sum of these
damages predicts that of a plan, and an integer programme finds the plan with the least sum within
the budget. Solved for many budgets it gives the Pareto frontier.

The sum is an assumption: it says that layers make each other's damage neither better nor worse. It
ranks plans; as a number it is rough, most where damages are large. Therefore the divergence of the
chosen plan, and of the uniform ones, is measured too and told beside it.

Source: ZeroQ, Cai et al. 2020, arXiv:2001.00281: sensitivities by KL divergence on distilled
    images, and the Pareto frontier of their sum against the model size.
Differs from source: the frontier is solved for a row of budgets by an integer programme, where the
    paper uses dynamic programming; inputs may be chosen as well as weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from emptyset.bit_allocation.budget import Budget
from emptyset.bit_allocation.candidates import Candidates, some_of
from emptyset.bit_allocation.frontier import Allocation, Problem
from emptyset.bit_allocation.layers import COUNT, WEIGHTS, Layer, Option, checked_widths
from emptyset.errors import RecipeError
from emptyset.monitor import SILENT, Monitor
from emptyset.quantizers.bits import Bits
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.images.folder import LazyImages
    from emptyset.images.image_set import ImageSet

# Seen: from 16 images, ResNet-20 got a plan that lost more than uniform bits; not from 256.
FEW_IMAGES = 64


@dataclass(frozen=True)
class MixedPrecision:
    """What was decided, and all that it was decided on.

    Attributes:
        budget: The budget as it was written.
        kind: What it limits: ``size``, ``average_bits`` or ``bit_operations``.
        relative: Whether ``cost`` is a share of w8a8.
        limit: The budget's limit in its own unit, as ``cost`` of an allocation.
        bits: Bits that the plan was asked for.
        image_count: Images that damages are means over.
        layers: Every layer with what was measured, in order of execution.
        options: The option that every layer was given.
        chosen: The allocation with the least predicted damage within the budget; ``measured`` too.
        uniform: The same width everywhere, by its bits; ``measured`` too.
        frontier: The best allocations for other budgets, cheapest first.
        problem: What was asked and measured; `within` asks it for other budgets.
    """

    budget: str
    kind: str
    relative: bool
    limit: float
    bits: str
    image_count: int
    layers: tuple[Layer, ...]
    options: tuple[Option, ...]
    chosen: Allocation
    uniform: dict[str, Allocation]
    frontier: tuple[Allocation, ...]
    problem: Problem = field(repr=False)

    @property
    def overrides(self) -> dict[str, str]:
        """What `prepare` takes as ``overrides``, beside the same teacher, bits and plan."""
        return dict(self.chosen.overrides)

    def within(self, budget: str | float | Budget) -> Allocation:
        """The best allocation for another budget, from what was measured already.

        Raises:
            RecipeError: If the budget cannot be met.
        """
        asked = replace(self.problem, budget=Budget.parse(budget))
        return asked.allocation(asked.best(asked.limit()))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "budget": self.budget,
            "kind": self.kind,
            "relative": self.relative,
            "limit": self.limit,
            "bits": self.bits,
            "images": self.image_count,
            "layers": [
                _layer_to_json(layer, option)
                for layer, option in zip(self.layers, self.options, strict=True)
            ],
            "overrides": self.overrides,
            "chosen": self.chosen.to_json(),
            "uniform": {bits: one.to_json() for bits, one in self.uniform.items()},
            "frontier": [one.to_json() for one in self.frontier],
        }


def _layer_to_json(layer: Layer, chosen: Option) -> dict[str, Any]:
    return {
        "name": layer.name,
        "operator": layer.operator,
        "weights": layer.weight_count,
        "macs": layer.macs,
        "options": [asdict(option) for option in layer.options],
        "chosen": layer.options.index(chosen),
    }


def mixed_precision(
    teacher: Teacher,
    images: "ImageSet | LazyImages",
    bits: str | Bits = "w8a8",
    *,
    budget: str | float | Budget,
    weights: Sequence[int] = WEIGHTS,
    activations: Sequence[int] | None = None,
    count: int = COUNT,
    plan: str = "integer",
    batch_norm: str = "fold",
    overrides: Mapping[str, str] | None = None,
    memory: float | None = None,
    seed: int = 0,
    monitor: Monitor = SILENT,
    **settings: Any,
) -> MixedPrecision:
    """Choose the bits of every layer so that a budget is met with least predicted damage.

    ``prepare(teacher, bits, plan=plan, overrides=found.overrides)`` then gives the student. Layers
    whose bits the plan or ``overrides`` fix stay as they are. Damages are measured after plain
    calibration; what a refiner wins back later is not foreseen.

    Args:
        teacher: The trained network; it stays as it is.
        images: Any images that the network could see, real or made.
        bits: Bits of what is not chosen: of all inputs unless ``activations`` is given.
        budget: For example ``0.6`` of the 8-bit size, ``150kB``, ``4.5bits`` on average,
            ``0.4xBOPs`` or ``30GBOPs``; see `emptyset.bit_allocation.budget`.
        weights: Widths that a layer's weights may have, 2 to 8. For a budget of size, of widths
            that take the same room in the file only the widest is tried.
        activations: Widths that a layer's input may have, or None: those of ``bits``.
        count: Damages are means over at most this many of the images, spread evenly.
        plan: Name of the plan.
        batch_norm: ``fold`` or ``frozen``.
        overrides: Bits by pattern of module path that are not to be chosen.
        memory: Memory that forwards may take [GB]; batches shrink to fit.
        seed: Seed of the calibration.
        monitor: Hears of progress; keeps what was measured, so that a killed run goes on.
        **settings: Settings of the plan.

    Raises:
        RecipeError: If the budget cannot be met (the message names the least that can), if the
            plan leaves nothing to choose, or if a setting is wrong.
        ImagesError: If there are no images, or the network is no classifier.
        MissingExtraError: If scipy is not installed.
    """
    if count < 1:
        raise RecipeError(f"mixed_precision.count: expected at least 1 image, got {count}.")
    candidates, problem = _asked(
        teacher, bits, budget, weights, activations, plan, batch_norm, overrides, settings
    )
    limit = problem.limit()
    shown = some_of(images, count)
    if len(shown) < FEW_IMAGES:
        monitor.note(
            f"Warning: mixed precision is measured on {len(shown)} images only. A plan then fits "
            f"these few: it can be worse than the same bits everywhere. Give {FEW_IMAGES} or more."
        )
    found = candidates.measure(shown, memory=memory, seed=seed, monitor=monitor)
    problem = replace(problem, layers=found.layers)
    options = problem.best(limit)
    best = problem.allocation(options)
    frontier = problem.frontier(monitor=monitor)
    measured = candidates.damage_of(
        best.overrides, shown, memory=memory, seed=seed, monitor=monitor
    )
    return MixedPrecision(
        budget=str(problem.budget),
        kind=problem.budget.kind,
        relative=problem.budget.relative,
        limit=problem.budget.value(limit, found.layers),
        bits=str(candidates.bits),
        image_count=len(shown),
        layers=tuple(found.layers),
        options=tuple(options),
        chosen=replace(best, measured=measured),
        uniform={
            str(wanted): problem.allocation(
                candidates.options(found.layers, wanted), found.together[wanted]
            )
            for wanted in candidates.grid
        },
        frontier=tuple(frontier),
        problem=problem,
    )


def require_reachable(
    teacher: Teacher,
    bits: str | Bits = "w8a8",
    *,
    budget: str | float | Budget,
    weights: Sequence[int] = WEIGHTS,
    activations: Sequence[int] | None = None,
    plan: str = "integer",
    batch_norm: str = "fold",
    overrides: Mapping[str, str] | None = None,
    **settings: Any,
) -> None:
    """Refuse a budget that cannot be met, before images are made and layers are measured.

    Raises:
        RecipeError: As `mixed_precision`, whose arguments these are.
    """
    _, problem = _asked(
        teacher, bits, budget, weights, activations, plan, batch_norm, overrides, settings
    )
    problem.limit()


def _asked(
    teacher: Teacher,
    bits: str | Bits,
    budget: str | float | Budget,
    weights: Sequence[int],
    activations: Sequence[int] | None,
    plan: str,
    batch_norm: str,
    overrides: Mapping[str, str] | None,
    settings: dict[str, Any],
) -> tuple[Candidates, Problem]:
    """What there is to choose; nothing is measured yet."""
    budget, bits = Budget.parse(budget), Bits.parse(bits)
    inputs = (bits.activations,) if activations is None else activations
    candidates = Candidates.of(
        teacher,
        bits,
        weights=budget.useful(checked_widths("weights", weights)),
        activations=checked_widths("activations", inputs),
        plan=plan,
        batch_norm=batch_norm,
        overrides=dict(overrides or {}),
        settings=settings,
    )
    return candidates, Problem(candidates.layers, candidates.freedom, budget, bits.activations)

"""The practical recipes: which one fits the bits, and how much of it fits the network's cost.

They lie in ``assets/practical_recipes.yaml``, with every number that decides; here is only how
they are read, chosen and cut. A recipe of a run is made of one in `job/from_options.py`.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from emptyset.errors import UnknownNameError
from emptyset.quantizers.bits import Bits
from emptyset.registry import nearest, refiners, synthesizers

if TYPE_CHECKING:
    from emptyset.teachers.cost import NetworkCost

FILE = Path(__file__).parent / "assets" / "practical_recipes.yaml"
BY_BITS = "practical"
# A budget of mixed precision gives some layers fewer bits than were asked for.
BITS_WITHIN_A_BUDGET = 4
# Forwards that a step costs: of making images (with the gradient of the pixels), of learning a
# block (with those of weights and values), of training (with the teacher's own forward).
_IMAGE_STEP, _BLOCK_STEP, _TRAINING_STEP = 2, 3, 4
_TRAINERS = ("distill",)
# Images that a run is judged on, where it makes them itself.
_JUDGED = 256
_BATCH = 32


@dataclass(frozen=True)
class PracticalRecipe:
    """One of the shipped recipes: what a run does, without teacher and plan.

    Attributes:
        name: As ``--recipe`` takes it.
        bits: It is made for these and for more.
        why: Why these methods at these bits, as half a sentence.
        why_depthwise: The same for networks with depthwise convolutions.
        synthesize: How images are made.
        refine: Refiners in order.
    """

    name: str
    bits: Bits
    why: str
    why_depthwise: str
    synthesize: dict[str, Any]
    refine: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Cut:
    """What was done for a network's cost.

    Attributes:
        share: What is left of images, steps and updates, at most 1.
        work: Estimate of what the run takes then [products].
        limit: What it should take at most [products].
        image: What one image costs in one forward [products].
    """

    share: float
    work: float
    limit: float
    image: float


@dataclass(frozen=True)
class Choice:
    """A practical recipe for certain bits and a certain network.

    Attributes:
        recipe: Which one.
        why: Why its methods for such a network, as half a sentence.
        data: Its sections, as ``Recipe.parse`` takes them; ``teacher`` and ``plan`` are missing.
        cut: What was cut; None where the network's cost is not known.
    """

    recipe: PracticalRecipe
    why: str
    data: dict[str, Any] = field(default_factory=dict)
    cut: Cut | None = None


def practical_recipes() -> tuple[PracticalRecipe, ...]:
    """All of them, most bits first."""
    return tuple(
        PracticalRecipe(
            name,
            Bits.parse(entry["bits"]),
            entry["why"],
            entry.get("why_depthwise", entry["why"]),
            copy.deepcopy(entry["synthesize"]),
            tuple(copy.deepcopy(entry["refine"])),
        )
        for name, entry in _file()["recipes"].items()
    )


def practical_names() -> tuple[str, ...]:
    """What ``--recipe`` takes besides files: ``practical`` (by bits), and each of them."""
    return (BY_BITS, *(recipe.name for recipe in practical_recipes()))


def practical_recipe(
    bits: str | Bits, *, name: str = BY_BITS, within_budget: bool = False
) -> PracticalRecipe:
    """The recipe of that name, or the one for these bits.

    Args:
        bits: For example ``w4a4``.
        name: ``practical`` chooses by bits.
        within_budget: Whether mixed precision will give layers fewer bits than these.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    known = practical_recipes()
    if name != BY_BITS:
        for recipe in known:
            if recipe.name == name:
                return recipe
        names = practical_names()
        raise UnknownNameError(
            f"No practical recipe is called '{name}'.{nearest(name, list(names))} "
            f"Known: {', '.join(names)}."
        )
    asked = Bits.parse(bits)
    weights = min(asked.weights, BITS_WITHIN_A_BUDGET) if within_budget else asked.weights
    return next(
        recipe
        for recipe in known
        if recipe.bits.weights <= weights and recipe.bits.activations <= asked.activations
    )


def practical_choice(
    recipe: PracticalRecipe,
    network: "NetworkCost | None" = None,
    *,
    made: bool = True,
    stored: bool = False,
    count: int | None = None,
) -> Choice:
    """The recipe's sections, cut to what the network costs.

    Args:
        recipe: Which one.
        network: What an image costs, and what is in the network; None: not known, nothing is cut
            and what is for some networks only is left out.
        made: Whether the run makes its images itself by ``recipe.synthesize``.
        stored: Whether its images come from a file or folder.
        count: The number of images where the user said it; it is not cut then.
    """
    told_by_batch_norm = not stored and (network is None or network.batch_norm)
    kinds = {"made_images" if told_by_batch_norm else "other_images"}
    depthwise = network is not None and network.depthwise
    kinds.add("depthwise" if depthwise else "no_depthwise")
    why = recipe.why_depthwise if depthwise else recipe.why
    refine = [
        {key: value for key, value in section.items() if key != "only_for"}
        for section in recipe.refine
        if kinds.issuperset(_only_for(section))
    ]
    images = copy.deepcopy(recipe.synthesize)
    if count is not None:
        images["count"] = count
    data = {"synthesize": images, "refine": refine}
    if network is None:
        return Choice(recipe, why, data)
    image = network.products + network.values * float(_file()["limits"]["products_per_value"])
    limit = float(_file()["limits"]["work"][network.device])

    def fits(share: float) -> bool:
        return work_of(_shortened(data, share, fixed=count is not None), image, made) <= limit

    share = _largest(fits)
    shortened = _shortened(data, share, fixed=count is not None)
    return Choice(recipe, why, shortened, Cut(share, work_of(shortened, image, made), limit, image))


def work_of(data: Mapping[str, Any], image: float, made: bool) -> float:
    """Estimate of what a run takes [products].

    Args:
        data: Sections ``synthesize`` and ``refine``.
        image: What one image costs in one forward [products].
        made: Whether its images are made.
    """
    forwards = 0.0
    if made:
        section = data["synthesize"]
        config = synthesizers.get(section["method"]).config(**_settings(section, "count"))
        images = section["count"] + min(section["count"], _JUDGED)
        steps = getattr(config, "steps", 1) / getattr(config, "snapshots", 1)
        forwards += images * steps * _IMAGE_STEP
    for section in data["refine"]:
        config = refiners.get(section["method"]).config(**_settings(section))
        updates, batch = getattr(config, "steps", None), getattr(config, "batch_size", None)
        batch = getattr(config, "images_per_update", batch)
        if updates and batch:
            each = _TRAINING_STEP if section["method"] in _TRAINERS else _BLOCK_STEP
            forwards += updates * batch * each
    return forwards * image


def reason(bits: str, data: Mapping[str, Any], choice: Choice) -> str:
    """What a run does and why, in one line.

    Args:
        bits: For example ``w4a4``.
        data: The whole recipe, as it will be run.
        choice: What it was made of.
    """
    told = ", then ".join(_told(section) for section in data["refine"])
    line = f"Recipe for {bits}: {choice.recipe.name}, which is {told}, {_images(data)}, since "
    line += choice.why
    if choice.cut is not None and choice.cut.share < 1:
        line += f"; {_described(choice.cut)}"
    return f"{line}. --recipe NAME or --set KEY=VALUE changes that."


# Parts -------------------------------------------------------------------------------------------


@cache
def _file() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return data


def _only_for(section: Mapping[str, Any]) -> list[str]:
    """All that a run must be for the section to be in it."""
    asked: str | list[str] = section.get("only_for", [])
    return [asked] if isinstance(asked, str) else asked


def _settings(section: Mapping[str, Any], *own: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in ("method", *own)}


def _shortened(data: Mapping[str, Any], share: float, *, fixed: bool) -> dict[str, Any]:
    """The sections with a share of their images, steps and updates, none below its least."""
    least: dict[str, dict[str, Any]] = _file()["limits"]["least"]
    images = dict(data["synthesize"])
    images["steps"] = _part(images["steps"], share, least["synthesize"]["steps"])
    if not fixed:
        count = _part(images["count"], share, least["synthesize"]["count"])
        # Whole batches of the refiners.
        images["count"] = min(images["count"], -(-count // _BATCH) * _BATCH)
    refine = []
    for section in data["refine"]:
        limits = least.get(section["method"])
        if limits is None or "steps" not in section:
            refine.append(dict(section))
            continue
        if limits.get("otherwise") == "leave_out" and section["steps"] * share < limits["steps"]:
            continue
        refine.append(section | {"steps": _part(section["steps"], share, limits["steps"])})
    return {"synthesize": images, "refine": refine}


def _part(number: int, share: float, least: int) -> int:
    """A share of a number, with two digits, as it is for people to read."""
    if share >= 1 or number <= least:
        return number
    exact = int(number * share)
    unit = int(10 ** max(0, len(str(exact)) - 2))
    return max(least, exact // unit * unit)


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest share up to 1 that fits, to 0.01; 0 where none does."""
    shares = [hundredths / 100 for hundredths in range(100, 0, -1)]
    return next((share for share in shares if fits(share)), 0.0)


def _described(cut: Cut) -> str:
    much = f"{cut.share:.0%} of the usual work" if cut.share else "as little work as is sensible"
    return f"{much}, since an image costs this network {cut.image / 1e9:.3g} billion products"


def _told(section: Mapping[str, Any]) -> str:
    steps = section.get("steps")
    return f"{section['method']} ({steps:,} steps)" if steps else str(section["method"])


def _images(data: Mapping[str, Any]) -> str:
    if data.get("synthesize"):
        section = data["synthesize"]
        return f"on {section['count']:,} images of {section['method']}"
    if data.get("images") == "none":
        return "without any image"
    return f"on at most {data['count']:,} images of {data['images']}"

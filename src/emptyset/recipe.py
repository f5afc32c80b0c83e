"""A recipe: one whole run as strict data, read from YAML and written back to it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from emptyset.bit_allocation.budget import Budget
from emptyset.bit_allocation.layers import COUNT, WEIGHTS, checked_widths
from emptyset.errors import RecipeError, UnknownNameError
from emptyset.quantizers.bits import Bits
from emptyset.recipe_by_bits import practical_names
from emptyset.recipe_text import apply_setting, read_marked
from emptyset.recipe_with_source import SOURCE_REFINERS, BesideSection, require_use_of_source
from emptyset.recipe_without_images import DATA_FREE_REFINERS, NONE, require_no_need
from emptyset.registry import Registry, nearest, plans, refiners, selectors, sources, synthesizers
from emptyset.settings import KeyPath, Places, checked_config, complaint, explain

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
OPEN = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())

DEFAULT_METHOD, DEFAULT_COUNT = "zeroq", 1024


def parse_shape(value: Any) -> Any:
    """``3x32x32`` as ``(3, 32, 32)``, a list as a tuple; anything else unchanged."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    parts = value.lower().split("x")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"expected channels x height x width such as 3x32x32, got '{value}'.")
    return tuple(int(part) for part in parts)


def _readable_bits(value: str) -> str:
    return str(Bits.parse(value))


def _readable_budget(value: str) -> str:
    return str(Budget.parse(value))


def _widths(value: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if value is None else checked_widths("bits", value)


def _as_text(value: Any) -> Any:
    # `budget: 0.6` is a number in YAML.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value


def _positive(value: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if value is not None and min(value) < 1:
        raise ValueError("every size must be at least 1.")
    return value


class TeacherSection(BaseModel):
    """Which network, and how its input is prepared."""

    model_config = STRICT

    name: str
    model: str | None = None
    model_args: dict[str, Any] | None = None
    input: Annotated[
        tuple[int, int, int] | None, BeforeValidator(parse_shape), AfterValidator(_positive)
    ] = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: str | None = None
    classes: str | None = None


class MethodSection(BaseModel):
    """A registered method; every other key is one of its settings."""

    model_config = OPEN

    method: str

    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


class SynthesizeSection(MethodSection):
    """How images are made."""

    method: str = DEFAULT_METHOD
    count: Annotated[int, Field(ge=2)] = DEFAULT_COUNT


class SourceSection(MethodSection):
    """A generator trained beside the student, and how many images of it are kept at the end."""

    count: Annotated[int, Field(ge=2)] = DEFAULT_COUNT
    beside: BesideSection | None = None


class PlanSection(BaseModel):
    """Where the quantizers sit and how many bits they have; other keys are the plan's own."""

    model_config = OPEN

    name: str = "integer"
    bits: Annotated[str, AfterValidator(_readable_bits)] = "w8a8"
    batch_norm: Literal["fold", "frozen"] = "fold"
    overrides: dict[str, str] = Field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The plan's own settings."""
        return dict(self.model_extra or {})


class MixedPrecisionSection(BaseModel):
    """Which bits a layer may have, and the budget that all of them together must meet."""

    model_config = STRICT

    budget: Annotated[str, BeforeValidator(_as_text), AfterValidator(_readable_budget)]
    weights: Annotated[tuple[int, ...], AfterValidator(_widths)] = WEIGHTS
    activations: Annotated[tuple[int, ...] | None, AfterValidator(_widths)] = None
    count: Annotated[int, Field(ge=1)] = COUNT


class ExportSection(BaseModel):
    """The file to write, and how much of it is proved."""

    model_config = STRICT

    format: Literal["onnx"] = "onnx"
    certificate_images: Annotated[int | None, Field(ge=2)] = None


class EvaluateSection(BaseModel):
    """What the result is judged on."""

    model_config = STRICT

    images: str | None = None
    count: Annotated[int, Field(ge=2)] = 256
    min_agreement: Annotated[float | None, Field(ge=0, le=1)] = None
    latency_rounds: Annotated[int, Field(ge=0)] = 20
    layer_images: Annotated[int, Field(ge=1)] = 64
    quality_images: Annotated[int, Field(ge=0)] = 256


class Recipe(BaseModel):
    """One whole run.

    Attributes:
        about: Why this recipe, in one line for people; decides nothing.
        seed: Seed of everything random.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
        memory: Memory that forwards of the student may take [GB]; batches shrink to fit.
        teacher: Which network.
        synthesize: How images are made; None where ``images`` names real ones.
        images: Folder, npz file or stored image set to calibrate with, instead of ``synthesize``;
            ``none``: without any image.
        source: A generator that is trained beside the student; its images are the run's where
            neither ``synthesize`` nor ``images`` is given.
        count: At most this many of ``images`` are used for calibration.
        select: Selectors, in order.
        plan: Where the quantizers sit.
        mixed_precision: How the bits of each layer are chosen; None: the plan's.
        refine: Refiners, in order.
        export: The file.
        evaluate: What the result is judged on.
    """

    model_config = STRICT

    about: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    memory: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    teacher: TeacherSection
    synthesize: SynthesizeSection | None = None
    images: str | None = None
    source: SourceSection | None = None
    count: Annotated[int, Field(ge=2)] | None = None
    select: tuple[MethodSection, ...] = ()
    plan: PlanSection = PlanSection()
    mixed_precision: MixedPrecisionSection | None = None
    refine: tuple[MethodSection, ...] = (MethodSection(method="calibrate"),)
    export: ExportSection = ExportSection()
    evaluate: EvaluateSection = EvaluateSection()

    @staticmethod
    def load(path: Path, settings: Sequence[str] = ()) -> "Recipe":
        """Read a YAML file.

        Args:
            path: The file.
            settings: ``KEY=VALUE`` changes, as ``--set`` takes them.

        Raises:
            RecipeError: With file, line, what was expected, what came and what to do.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error}).") from error
        return Recipe.parse(*read_marked(text, str(path)), settings=settings)

    @staticmethod
    def parse(
        data: Mapping[str, Any],
        places: Mapping[KeyPath, str] | None = None,
        *,
        settings: Sequence[str] = (),
    ) -> "Recipe":
        """Check plain data.

        Args:
            data: Sections and values, as YAML gives them.
            places: Where each value was written, for messages.
            settings: ``KEY=VALUE`` changes on top.

        Raises:
            RecipeError: Naming every value that is wrong.
        """
        changed: dict[str, Any] = json.loads(json.dumps(dict(data)))
        known = dict(places or {})
        if settings:
            # It was said of what is changed now.
            changed.pop("about", None)
        for setting in settings:
            apply_setting(changed, known, setting)
        where = Places(known)
        try:
            recipe = Recipe.model_validate_json(json.dumps(changed))
        except ValidationError as error:
            raise RecipeError(
                explain(error, changed, where=(), places=where, settings_at=_settings_at)
            ) from error
        return _with_checked_methods(recipe, where)

    def to_data(self) -> dict[str, Any]:
        """Plain data that ``parse`` reads back to an equal recipe; unset values are left out."""
        data: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return {key: value for key, value in data.items() if value not in ([], {})}

    def decisive_data(self) -> dict[str, Any]:
        """The same without what decides nothing."""
        return {key: value for key, value in self.to_data().items() if key != "about"}

    def to_yaml(self) -> str:
        """YAML that ``load`` reads back to an equal recipe."""
        return str(yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True, width=100))

    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal: equal exactly when recipes do the same."""
        return hash_of(self.decisive_data())

    def changed(self, settings: Sequence[str]) -> "Recipe":
        """The recipe with ``KEY=VALUE`` changes."""
        return Recipe.parse(self.to_data(), settings=settings)


def hash_of(data: Any) -> str:
    """SHA-256 of the canonical JSON of plain data, hexadecimal."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


_SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": TeacherSection,
    "synthesize": SynthesizeSection,
    "source": SourceSection,
    "plan": PlanSection,
    "mixed_precision": MixedPrecisionSection,
    "export": ExportSection,
    "evaluate": EvaluateSection,
}


def _settings_at(path: KeyPath) -> list[str]:
    section = _SECTIONS.get(str(path[0])) if path else Recipe
    return list(section.model_fields) if section else []


def _with_checked_methods(recipe: Recipe, places: Places) -> Recipe:
    """Check names and settings of all methods; fill in the default way to get images."""
    if recipe.synthesize is not None and recipe.images is not None:
        raise RecipeError(
            complaint(
                ("images",),
                places,
                "a recipe has either `images` or `synthesize`. Remove one of them.",
            )
        )
    if recipe.count is not None and recipe.images is None:
        raise RecipeError(
            complaint(
                ("count",), places, "counts `images`; write `synthesize.count` for made images."
            )
        )
    if recipe.images is None and recipe.synthesize is None and recipe.source is None:
        recipe = recipe.model_copy(update={"synthesize": SynthesizeSection()})
    given = "refine" in recipe.model_fields_set
    if not given and (recipe.images == NONE or recipe.source is not None):
        own = SOURCE_REFINERS if recipe.source is not None else DATA_FREE_REFINERS
        sections = tuple(MethodSection(**section) for section in own)
        recipe = recipe.model_copy(update={"refine": sections})
    if recipe.synthesize is not None:
        _check_method(synthesizers, recipe.synthesize, ("synthesize",), places)
    if recipe.source is not None:
        _check_method(sources, recipe.source, ("source",), places)
    for index, chosen in enumerate(recipe.select):
        _check_method(selectors, chosen, ("select", index), places)
    for index, chosen in enumerate(recipe.refine):
        _check_method(refiners, chosen, ("refine", index), places)
    methods = [(section.method, section.settings()) for section in recipe.refine]
    if recipe.images == NONE:
        require_no_need(dict(recipe), methods, places)
    require_use_of_source(dict(recipe), methods, places)
    _check(plans, recipe.plan.name, recipe.plan, ("plan",), "name", places)
    for pattern, bits in recipe.plan.overrides.items():
        try:
            Bits.parse(bits)
        except RecipeError as error:
            message = complaint(("plan", "overrides", pattern), places, str(error))
            raise RecipeError(message) from error
    return recipe


def _check_method(
    registry: Registry, section: MethodSection, where: KeyPath, places: Places
) -> None:
    _check(registry, section.method, section, where, "method", places)


def _check(
    registry: Registry,
    name: str,
    section: MethodSection | PlanSection,
    where: KeyPath,
    key: str,
    places: Places,
) -> None:
    try:
        entry = registry.get(name)
    except UnknownNameError as error:
        raise RecipeError(complaint((*where, key), places, str(error))) from error
    own = list(type(section).model_fields)
    settings = section.settings()
    known = list(getattr(entry.config, "__dataclass_fields__", {}))
    for setting in settings:
        # `cuont: 3` may mean the section's own `count`; name the nearest of both kinds.
        if setting not in known:
            hint = nearest(setting, known + own)
            text = f"{entry.name} has no such setting.{hint} Settings: {', '.join(own + known)}."
            raise RecipeError(complaint((*where, setting), places, text))
    checked_config(entry.config, settings, where=where, places=places)


def find_recipe(name: str) -> Path:
    """The file of a recipe, given as a path or as a name.

    A name is looked up in ``recipes/`` of the current folder, then of the clone.

    Raises:
        UnknownNameError: If there is no such file or name.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        if Path(name).is_file():
            return Path(name)
        raise UnknownNameError(f"{name}: there is no such recipe file.")
    folders = (Path("recipes"), Path(__file__).resolve().parents[2] / "recipes")
    found: dict[str, Path] = {}
    for folder in reversed(folders):
        if folder.is_dir():
            found |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name in found:
        return found[name]
    known = [*sorted(found), *practical_names()]
    if name in practical_names():
        raise UnknownNameError(
            f"{name}: is made for any network and names none, so it cannot run by itself. Write: "
            f"emptyset quantize TEACHER --recipe {name}"
        )
    with_it = [other for other in known if name in other]
    told = f" With '{name}' in their names" if with_it else f"{nearest(name, known)} Known"
    raise UnknownNameError(
        f"No recipe is called '{name}'.{told}: {', '.join(with_it or known)}. A file is given "
        "with its ending .yaml."
    )

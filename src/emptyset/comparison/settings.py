"""What is compared, as strict data, read from YAML and written back to it.

The sections of a recipe that say what becomes of the images (``plan``, ``refine``, ``select``,
``evaluate``, ``memory`` and whatever recipes learn later) stand here too and hold for every row.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from emptyset.errors import RecipeError
from emptyset.recipe import DEFAULT_COUNT, OPEN, STRICT, MethodSection, Recipe, TeacherSection
from emptyset.recipe import hash_of as hash_of
from emptyset.recipe_text import apply_setting, read_marked
from emptyset.registry import nearest, synthesizers
from emptyset.settings import KeyPath, Places, checked_config, complaint, explain

DEFAULT_BITS = "w4a4"
# Ours: enough for the order of methods to show, seconds to minutes for a small network.
DEFAULT_PER_IMAGE = 100
REAL = "real"
# Sections of a recipe that every row sets for itself.
_OF_A_ROW = ("synthesize", "images")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def _readable_label(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise ValueError(f"a label is made of letters, digits and _.+-; got '{value}'.")
    return value


class RowSection(MethodSection):
    """A synthesizer to compare; other keys are its settings."""

    label: Annotated[str | None, AfterValidator(_readable_label)] = None

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.label or self.method


class BudgetSection(BaseModel):
    """What every method may spend on its images; exactly one of the three.

    Attributes:
        image_iterations: Images times steps (``inversion/budget.py``).
        seconds: Wall time [seconds].
        own_settings: No common budget: every method as its settings have it.
    """

    model_config = STRICT

    image_iterations: Annotated[int | None, Field(ge=1)] = None
    seconds: Annotated[float | None, Field(gt=0)] = None
    own_settings: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> "BudgetSection":
        given = [self.image_iterations is not None, self.seconds is not None, self.own_settings]
        if sum(given) != 1:
            raise ValueError("give exactly one of image_iterations, seconds, own_settings.")
        return self

    def described(self) -> str:
        """In words, for tables."""
        if self.image_iterations is not None:
            return f"{self.image_iterations:,} image-iterations each"
        if self.seconds is not None:
            return f"{self.seconds:g} s each"
        return "none: every method with its own settings"


class Comparison(BaseModel):
    """Several ways to images, one budget, one way from images to a student.

    Attributes:
        seed: Seed of everything random.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
        teacher: Which network.
        methods: Synthesizers, one row each.
        count: Images of every row.
        budget: What every method may spend.
        labelled: Labelled images that every student is judged on.
        real: Real images: one more row, fitted to as many of them.
        clip: A CLIP model, by its name on the hub or its folder, for one more similarity.
        judged_count: Images to judge on where there are neither labelled nor real ones: they are
            made by all methods alike, with another seed.
    """

    model_config = OPEN

    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    teacher: TeacherSection
    methods: Annotated[tuple[RowSection, ...], Field(min_length=1)]
    count: Annotated[int, Field(ge=2)] = DEFAULT_COUNT
    budget: BudgetSection
    labelled: str | None = None
    real: str | None = None
    clip: str | None = None
    judged_count: Annotated[int, Field(ge=2)] = 256

    @staticmethod
    def load(path: Path, settings: Sequence[str] = ()) -> "Comparison":
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
        return Comparison.parse(*read_marked(text, str(path)), settings=settings)

    @staticmethod
    def parse(
        data: Mapping[str, Any],
        places: Mapping[KeyPath, str] | None = None,
        *,
        settings: Sequence[str] = (),
    ) -> "Comparison":
        """Check plain data.

        Args:
            data: Sections and values, as YAML gives them.
            places: Where each value was written, for messages.
            settings: ``KEY=VALUE`` changes on top; a row is named by its label
                (``methods.zeroq.clip=true``).

        Raises:
            RecipeError: Naming every value that is wrong.
        """
        changed: dict[str, Any] = json.loads(json.dumps(dict(data)))
        known = dict(places or {})
        for setting in settings:
            apply_setting(changed, known, _by_number(setting, changed))
        where = Places(known)
        _refuse_strangers(changed, where)
        _fill_in(changed)
        try:
            comparison = Comparison.model_validate_json(json.dumps(changed))
        except ValidationError as error:
            raise RecipeError(
                explain(error, changed, where=(), places=where, settings_at=_settings_at)
            ) from error
        _check_rows(comparison, where)
        # The sections of the recipe are checked as recipes are.
        Recipe.parse(comparison.recipe_data(comparison.methods[0]), known)
        return comparison

    def recipe_sections(self) -> dict[str, Any]:
        """What holds for every row besides its images, as the data of a recipe."""
        return dict(self.model_extra or {})

    def recipe_data(self, row: RowSection, settings: Mapping[str, Any] | None = None) -> Any:
        """The data of a recipe of one row with made images.

        Args:
            row: The row.
            settings: The method's settings; as the row has them where None.
        """
        settings = row.settings() if settings is None else settings
        made = {"method": row.method, "count": self.count, **settings}
        return self._shared() | self.recipe_sections() | {"synthesize": made}

    def real_recipe_data(self) -> Any:
        """The data of the recipe of the row with real images."""
        return self._shared() | self.recipe_sections() | {"images": self.real, "count": self.count}

    def _shared(self) -> dict[str, Any]:
        data = self.to_data()
        return {name: data[name] for name in ("seed", "device", "teacher")}

    def to_data(self) -> dict[str, Any]:
        """Plain data that ``parse`` reads back to an equal comparison."""
        data: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return data

    def to_yaml(self) -> str:
        """YAML that ``load`` reads back to an equal comparison."""
        return str(yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True, width=100))

    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hash_of(self.to_data())


def _by_number(setting: str, data: Mapping[str, Any]) -> str:
    """``methods.LABEL.steps=3`` with the row's number: two rows may have one method."""
    key, equals, value = setting.partition("=")
    rows = data.get("methods")
    if not key.startswith("methods.") or not isinstance(rows, list):
        return setting
    rest = key.removeprefix("methods.")
    labels = [
        str(row.get("label") or row.get("method")) for row in rows if isinstance(row, Mapping)
    ]
    # A label may hold dots; the longest that fits is meant.
    for label in sorted(labels, key=len, reverse=True):
        if rest.startswith(f"{label}."):
            after = rest.removeprefix(f"{label}.")
            return f"methods.{labels.index(label)}.{after}{equals}{value}"
    return setting


def _settings_at(path: KeyPath) -> list[str]:
    sections: dict[str, type[BaseModel]] = {"teacher": TeacherSection, "budget": BudgetSection}
    section = sections.get(str(path[0])) if path else Comparison
    return list(section.model_fields) if section else []


def _refuse_strangers(data: Mapping[str, Any], places: Places) -> None:
    own = list(Comparison.model_fields)
    shared = [name for name in Recipe.model_fields if name not in (*own, *_OF_A_ROW)]
    for key in data:
        evaluate = data.get("evaluate")
        if key == "evaluate" and isinstance(evaluate, Mapping) and "images" in evaluate:
            text = "a comparison names the images that it judges on `labelled`. Write that."
            raise RecipeError(complaint((key, "images"), places, text))
        if key in own or key in shared:
            continue
        known = own + shared
        text = f"no such setting.{nearest(key, known)} Settings: {', '.join(known)}."
        if key in _OF_A_ROW:
            text = "a comparison names its images under `methods`, and real ones under `real`."
        raise RecipeError(complaint((key,), places, text))


def _fill_in(data: dict[str, Any]) -> None:
    """The defaults that depend on other values."""
    plan = data.setdefault("plan", {})
    if isinstance(plan, dict):
        plan.setdefault("bits", DEFAULT_BITS)
    count = data.get("count", DEFAULT_COUNT)
    if isinstance(count, int):
        data.setdefault("budget", {"image_iterations": DEFAULT_PER_IMAGE * count})


def _check_rows(comparison: Comparison, places: Places) -> None:
    seen: set[str] = {REAL} if comparison.real is not None else set()
    for index, row in enumerate(comparison.methods):
        path = ("methods", index)
        if row.name in seen:
            raise RecipeError(
                complaint(
                    path,
                    places,
                    f"two rows are called '{row.name}'. Give one of them another `label`.",
                )
            )
        seen.add(row.name)
        try:
            entry = synthesizers.get(row.method)
        except LookupError as error:
            raise RecipeError(complaint((*path, "method"), places, str(error))) from error
        settings = row.settings()
        if "steps" in settings and not comparison.budget.own_settings:
            raise RecipeError(
                complaint(
                    (*path, "steps"),
                    places,
                    "the budget decides the steps. Remove it, or compare with --own-settings.",
                )
            )
        checked_config(entry.config, settings, where=path, places=places)
    _refuse_equal_images(comparison, places)


def _refuse_equal_images(comparison: Comparison, places: Places) -> None:
    """Nobody is judged on the images that he was fitted to."""
    given = [comparison.real, comparison.labelled]
    if None in given or len({Path(str(path)).resolve() for path in given}) == len(given):
        return
    raise RecipeError(
        complaint(
            ("real",),
            places,
            "is the same as `labelled`. Give it as `real` alone: a fifth of it is kept apart to "
            "judge on.",
        )
    )

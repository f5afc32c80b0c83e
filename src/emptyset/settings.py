"""Settings that a person wrote, checked strictly and explained in plain words.

A method's settings are a frozen dataclass. What comes from a recipe, an option or a keyword is
checked against its fields: unknown names, wrong types and refused values become a `RecipeError`
that says where it stands (file and line), what was expected, what came and what to do.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from emptyset.errors import EmptysetError, RecipeError
from emptyset.registry import nearest

KeyPath = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "dataclass_type": "a section of `key: value` lines",
    "none_required": "nothing (null)",
}

_SCIENTIFIC = re.compile(r"^([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)$")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each value was written: ``recipe.yaml:7``, or the option that gave it.

    Attributes:
        known: Place per path of keys.
        default: Named for a path that has no place of its own.
    """

    known: Mapping[KeyPath, str] = dataclasses.field(default_factory=dict)
    default: str = ""

    def of(self, path: KeyPath) -> str:
        """The place of ``path``, or of the nearest section around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.known:
                return self.known[path[:length]]
        return self.default


def complaint(path: KeyPath, places: Places, message: str) -> str:
    """``recipe.yaml:7: synthesize.steps: message``."""
    where = [part for part in (places.of(path), dotted(path)) if part]
    return ": ".join([*where, message])


def dotted(path: KeyPath) -> str:
    """``("refine", 0, "steps")`` as ``refine.0.steps``."""
    return ".".join(str(part) for part in path)


def described(value: Any) -> str:
    """A value in the words of a person who writes YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, Mapping):
        return "a section"
    return f"the list {json.dumps(value, default=str)}"


def explain(
    error: ValidationError,
    data: Any,
    *,
    where: KeyPath,
    places: Places,
    settings_at: Callable[[KeyPath], list[str]],
) -> str:
    """All complaints of a pydantic error in plain words, one a line.

    Args:
        error: What pydantic found.
        data: What was validated.
        where: Path of ``data`` within the recipe.
        places: Where each value was written.
        settings_at: The settings that the section at a path (below ``where``) knows.
    """
    messages: dict[KeyPath, list[str]] = {}
    for problem in error.errors():
        path, value = _real_path(problem["loc"], data)
        kind = problem["type"]
        if kind == "extra_forbidden":
            known = settings_at(path[:-1])
            hint = nearest(str(path[-1]), known)
            text = f"no such setting.{hint} Settings: {', '.join(known)}."
            if len(path) == 1 and not hint:
                text += f" One of a method has its section before it, as in synthesize.{path[0]}."
        elif kind == "missing":
            path, text = (*path, problem["loc"][-1]), "is required, but missing."
        elif kind in _EXPECTED:
            text = f"expected {_EXPECTED[kind]}, got {described(value)}.{_yaml_hint(value)}"
        elif kind == "literal_error":
            text = f"expected {problem['ctx']['expected']}, got {described(value)}."
        elif kind == "value_error":
            text = str(problem["ctx"]["error"])
        elif kind in ("greater_than_equal", "less_than_equal"):
            limit, bound = ("at least", "ge") if kind[0] == "g" else ("at most", "le")
            text = f"expected {limit} {problem['ctx'][bound]}, got {described(value)}."
        else:
            text = f"{problem['msg']}, got {described(value)}."
        messages.setdefault((*where, *path), []).append(text)
    return "\n".join(
        complaint(path, places, " Or: ".join(dict.fromkeys(texts)))
        for path, texts in messages.items()
    )


def _real_path(loc: tuple[int | str, ...], data: Any) -> tuple[KeyPath, Any]:
    """The part of pydantic's location that exists in the data (unions add names of their own)."""
    path: list[str | int] = []
    for part in loc:
        is_key = isinstance(data, Mapping) and part in data
        is_item = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not (is_key or is_item):
            break
        data = data[part]
        path.append(part)
    return tuple(path), data


def _yaml_hint(value: Any) -> str:
    """YAML reads ``1e-3`` as text; say how to write it."""
    found = _SCIENTIFIC.match(value) if isinstance(value, str) else None
    if not found:
        return ""
    whole, fraction, sign, exponent = found.groups()
    good = f"{whole}{fraction if fraction and fraction != '.' else '.0'}e{sign or '+'}{exponent}"
    return f" YAML reads {value} as text; write {good}."


def checked_config(
    config: type[Any],
    settings: Mapping[str, Any],
    *,
    where: KeyPath = (),
    places: Places | None = None,
) -> Any:
    """Build a method's config from what a person wrote.

    Args:
        config: Frozen dataclass of the method's settings.
        settings: Value per setting; lists stand for tuples, texts for paths.
        where: Path of the section, for messages.
        places: Where each value was written, for messages.

    Raises:
        RecipeError: If a name is unknown, a type is wrong or the config refuses a value.
    """
    places = places or Places()
    model = _model_of(config)
    known = list(model.model_fields)
    try:
        # JSON mode is strict about numbers and texts, yet takes a list for a tuple.
        values = model.model_validate_json(json.dumps(dict(settings), default=str))
    except ValidationError as error:
        raise RecipeError(
            explain(error, dict(settings), where=where, places=places, settings_at=lambda _: known)
        ) from error
    given = {name: getattr(values, name) for name in settings}
    try:
        return config(**given)
    except (EmptysetError, ValueError, TypeError) as error:
        raise RecipeError(complaint(where, places, str(error))) from error


def _model_of(config: type[Any]) -> type[BaseModel]:
    hints = get_type_hints(config)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        default: Any = ...
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        fields[field.name] = (hints[field.name], default)
    strict = ConfigDict(
        extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=()
    )
    return create_model(config.__name__, __config__=strict, **fields)

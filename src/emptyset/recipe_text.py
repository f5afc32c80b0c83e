"""YAML text to plain data, with the place of every value kept for messages."""

import io
from typing import Any

import yaml

from emptyset.errors import RecipeError
from emptyset.settings import KeyPath


def read_marked(text: str, name: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Plain data of a recipe, and ``file:line`` per path of keys.

    Args:
        text: YAML.
        name: File name, for messages.

    Raises:
        RecipeError: If the text is no YAML, or not one section of ``key: value`` lines.
    """
    loader = yaml.SafeLoader(io.StringIO(text))
    try:
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{where}: not readable as YAML: {problem}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{name}: a recipe is made of `key: value` lines. Got none.")
    places: dict[KeyPath, str] = {(): name}
    data = _plain(loader, root, (), places, name)
    return data, places


def _plain(
    loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, places: dict[KeyPath, str], name: str
) -> Any:
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            places[(*path, index)] = f"{name}:{item.start_mark.line + 1}"
            items.append(_plain(loader, item, (*path, index), places, name))
        return items
    if not isinstance(node, yaml.MappingNode):
        value = loader.construct_object(node)
        # Dates and the like have no meaning in a recipe; the text as written has.
        return value if isinstance(value, str | int | float | None) else str(node.value)
    section: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in section:
            raise RecipeError(f"{name}:{line}: '{key}' is written twice. Keep one of the lines.")
        places[(*path, key)] = f"{name}:{line}"
        section[key] = _plain(loader, value_node, (*path, key), places, name)
    return section


def apply_setting(data: dict[str, Any], places: dict[KeyPath, str], setting: str) -> None:
    """Write ``KEY=VALUE`` into the data of a recipe, in place.

    Args:
        data: Plain data of the recipe.
        places: Place per path; the changed one is named after the option.
        setting: For example ``synthesize.steps=200``. A list's item is named by its number or
            by its method (``refine.calibrate.batch_size=32``).

    Raises:
        RecipeError: If the text has another form or a list has no such item.
    """
    option = f"--set {setting}"
    key, equals, text = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{option}: expected KEY=VALUE, for example synthesize.steps=200.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{option}: the value is not readable as YAML.") from error
    path: list[str | int] = []
    section: Any = data
    parts = key.split(".")
    if parts[:2] == ["plan", "overrides"]:
        # What follows is one key: a module path, dots and all.
        parts = [*parts[:2], ".".join(parts[2:])]
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        step: str | int = _item(section, part, option) if isinstance(section, list) else part
        path.append(step)
        if last:
            section[step] = value
            break
        if isinstance(section, dict) and not isinstance(section.get(step), dict | list):
            section[step] = {}
        section = section[step]
    changed = tuple(path)
    for known in [known for known in places if known[: len(changed)] == changed]:
        del places[known]
    places[changed] = option


def _item(items: list[Any], part: str, option: str) -> int:
    methods = [item.get("method") if isinstance(item, dict) else None for item in items]
    if part in methods:
        return methods.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = ", ".join(f"{index} ({method})" for index, method in enumerate(methods))
    raise RecipeError(f"{option}: the list has no item '{part}'. Items: {names or 'none'}.")

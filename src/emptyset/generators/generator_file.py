"""A trained generator as one file: its network, and the card that tells how to build it again."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.generators.generator_source import GeneratorSource

CARD = "emptyset.generator"
# Of the card: what tells how to build the generator again, and in which words to ask for it.
_ENTRIES = {
    "method": (str, "a text"),
    "settings": (dict, "a section"),
    "seed": (int, "a whole number"),
    "teacher": (str, "a text"),
    "input": (list, "a list"),
    "lessons": (int, "a whole number"),
    "batch_size": (int, "a whole number"),
}


def save_generator(source: GeneratorSource, path: Path) -> None:
    """Write ``path`` (safetensors, with the card in its metadata), aside and renamed."""
    network = source.generator.state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.items()}
    aside = path.with_name(f".{path.name}.part")
    save_file(tensors, aside, metadata={CARD: json.dumps(source.card())})
    aside.replace(path)


def read_generator(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the network's state dict.

    Raises:
        ImagesError: If the file is missing, truncated or no generator, or its card is damaged.
    """
    if path.is_dir():
        raise ImagesError(
            f"{path}: is a folder. Give the generator.safetensors that a run with a `source` wrote "
            "into its folder."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ImagesError(f"{path}: not a readable generator ({error}).") from error
    if CARD not in metadata:
        raise ImagesError(
            f"{path}: is no generator. Give the generator.safetensors that a run with a `source` "
            "wrote."
        )
    return _checked_card(path, metadata[CARD]), tensors


def _checked_card(path: Path, text: str) -> dict[str, Any]:
    try:
        card = json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"it is no JSON ({error})") from error
    if not isinstance(card, dict):
        raise _damaged(path, "it is no section")
    for name, (kind, words) in _ENTRIES.items():
        if name not in card:
            raise _damaged(path, f"'{name}' is missing")
        # To Python a truth value is a number.
        if not isinstance(card[name], kind) or isinstance(card[name], bool):
            raise _damaged(path, f"'{name}' must be {words}, and is {card[name]!r}")
    for name in ("mean", "std"):
        values = card.get(name, [])
        if not isinstance(values, list) or not all(_is_number(v) for v in values):
            raise _damaged(path, f"'{name}' must be a list of numbers, and is {values!r}")
    if not 0 <= card["seed"] < 1 << 63:
        raise _damaged(path, f"'seed' must be a number from 0 to 2**63, and is {card['seed']}")
    if card["batch_size"] < 2:
        raise _damaged(path, f"'batch_size' must be at least 2, and is {card['batch_size']}")
    return card


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _damaged(path: Path, what: str) -> ImagesError:
    return ImagesError(
        f"{path}: the card in this generator is damaged: {what}. Give an undamaged copy, or run "
        "the recipe again."
    )

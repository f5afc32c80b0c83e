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
        ImagesError: If the file is missing, truncated or no generator.
    """
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
    card: dict[str, Any] = json.loads(metadata[CARD])
    return card, tensors

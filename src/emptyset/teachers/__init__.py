"""Teachers by name: ``load_teacher("timm:resnet18.a1_in1k")`` and its kind.

Each source is one file with a function ``load(request) -> Teacher``. Files are imported when their
prefix is asked for, so that a missing extra never stops another source.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emptyset.errors import UnknownNameError
from emptyset.registry import nearest
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, StoredBatchNorm, Teacher

__all__ = ["InputSpec", "StoredBatchNorm", "Teacher", "load_teacher", "teacher_sources"]

# Prefix, module, one sentence.
_SOURCES = {
    "embedded": ("embedded", "Small networks that ship with emptyset and read handwritten digits."),
    "timm": ("timm", "Any classifier of timm, for example timm:resnet18.a1_in1k."),
    "torchvision": (
        "torchvision",
        "Any classifier of torchvision, for example torchvision:resnet18.",
    ),
    "pytorchcv": (
        "pytorchcv",
        "Any classifier of pytorchcv, for example pytorchcv:resnet20_cifar10.",
    ),
    "hf": ("huggingface", "An image classifier of transformers: a name on the hub, or a folder."),
    "file": (
        "checkpoint",
        "Your own weights, with `--model module:function` that builds the network.",
    ),
}


def load_teacher(
    name: str,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: Path | None = None,
    classes: Path | None = None,
    pretrained: bool = True,
    allow_pickle: bool = False,
) -> Teacher:
    """Load a trained classifier: on the CPU, float32, in eval mode, its weights frozen.

    The network is called once, on two images, to see that it gives finite logits ``(2, K)``.
    Networks are built under a fixed seed: one that draws its own weights draws the same each time.

    Args:
        name: Source and name, for example ``embedded:digits-resnet``, ``timm:resnet18.a1_in1k``,
            ``hf:my_folder``, ``file:weights.safetensors``; ``file:`` alone where the function of
            ``model`` loads its own weights.
        model: ``module:function`` that builds the network; for ``file:`` only. The Python path
            and the current folder are searched.
        model_args: Keyword arguments for that function, or for the source's own constructor
            (``{"num_classes": 10}``).
        input_shape: ``(C, H, W)`` [pixels]; needed for ``file:``, elsewhere it replaces what the
            source says.
        mean: Per channel [pixel units, 0..1]; needed for ``file:``.
        std: Per channel [pixel units, 0..1]; needed for ``file:``.
        weights: Local file that replaces the source's own weights; nothing is downloaded then
            (``hf:NAME`` still needs the configuration of NAME).
        classes: Text file with one class name a line, or JSON: a list, or names by index.
        pretrained: False builds the architecture and reads no weights, neither from a hub nor
            from a file.
        allow_pickle: Run the code that a pickled checkpoint asks for. Only for files you trust.

    Returns:
        The teacher, with its preprocessing, class names where known, hash and provenance.

    Raises:
        UnknownNameError: No source or no network has this name; the message names the nearest.
        MissingExtraError: The package behind the source is not installed.
        TeacherError: The hub cannot be reached, the weights do not fit or are damaged, an option
            is missing or does not apply, or the network does not give logits.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or prefix not in _SOURCES:
        raise UnknownNameError(_explain_prefix(name, prefix if colon else ""))
    request = TeacherRequest(
        full_name=name if rest else f"{name}{model or ''}",
        name=rest,
        model=model,
        model_args=dict(model_args or {}),
        input_shape=input_shape,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        weights=weights,
        classes=classes,
        pretrained=pretrained,
        allow_pickle=allow_pickle,
    )
    source = importlib.import_module(f"emptyset.teachers.{_SOURCES[prefix][0]}")
    teacher: Teacher = source.load(request)
    return teacher


def teacher_sources() -> list[tuple[str, str]]:
    """Every source: its prefix and one sentence."""
    return [(prefix, sentence) for prefix, (_, sentence) in _SOURCES.items()]


def _explain_prefix(name: str, prefix: str) -> str:
    known = ", ".join(f"{source}:" for source in _SOURCES)
    if prefix:
        hint = nearest(prefix, list(_SOURCES))
        return f"No source of teachers is called '{prefix}:'.{hint} Known: {known}."
    return (
        f"Teacher '{name}' does not say where it comes from. Write SOURCE:NAME, for example "
        f"embedded:digits-resnet or timm:resnet18.a1_in1k. Known sources: {known}."
    )

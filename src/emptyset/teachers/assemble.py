"""The last step of every source: freeze the network, try it once, and make the teacher."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emptyset.errors import TeacherError
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights
from emptyset.teachers.unwrapping import unwrapped
from emptyset.teachers.weights import not_finite


def assemble(
    request: TeacherRequest,
    module: Any,
    *,
    known_input: InputSpec | None,
    known_classes: Sequence[str] | None = None,
    provenance: dict[str, Any],
) -> Teacher:
    """Make a teacher of a network that has its weights.

    Args:
        request: What the user asked for.
        module: The network; changed in place: CPU, float32, eval mode, frozen.
        known_input: What the source knows about the input.
        known_classes: Names the source knows; left out where their number is not K.
        provenance: Where the weights came from (JSON data).

    Raises:
        TeacherError: The network is none, has weights that are not finite, or gives no logits;
            or the options do not fit it.
    """
    module = unwrapped(module)
    if not isinstance(module, nn.Module):
        raise TeacherError(
            f"{request.full_name}: expected a torch.nn.Module, got {type(module).__name__}. The "
            "function behind --model must return the network."
        )
    module.eval().requires_grad_(False).to(device="cpu", dtype=torch.float32)
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise TeacherError(f"{request.full_name}: {not_finite(name, value)}")
    spec = request.input(known_input)
    classes = count_classes(request, module, spec)
    names = None
    if request.classes is not None:
        names = read_class_names(request.classes)
        if len(names) != classes:
            raise TeacherError(
                f"{request.classes}: {len(names)} class names, but {request.full_name} gives "
                f"{classes} logits. One name per class, in the order of the logits."
            )
    elif known_classes is not None and len(known_classes) == classes:
        names = tuple(known_classes)
    if request.model_args:
        provenance = {**provenance, "model_args": request.model_args}
    return Teacher(
        name=request.full_name,
        module=module,
        input=spec,
        class_names=names,
        weights_hash=hash_of_weights(module),
        provenance=provenance,
    )


@torch.no_grad()
def count_classes(request: TeacherRequest, module: nn.Module, spec: InputSpec) -> int:
    """Call the network on two images of noise and look at what comes out.

    Returns:
        K, the number of logits.

    Raises:
        TeacherError: The network fails, or the output is not finite logits ``(2, K)``, K ≥ 2.
    """
    where, shape = request.full_name, "x".join(map(str, spec.shape))
    images = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    try:
        logits = module(images)
    except Exception as error:
        raise TeacherError(
            f"{where}: the network fails on two images of {shape} ({type(error).__name__}: "
            f"{error}). Is that the size it was made for? Say it with --input CxHxW."
        ) from error
    if not isinstance(logits, Tensor):
        raise TeacherError(
            f"{where}: expected logits as one tensor (N, K), got {type(logits).__name__}. Wrap "
            "the network so that its forward returns the logits alone."
        )
    if logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < 2:
        raise TeacherError(
            f"{where}: expected logits (2, K) with at least 2 classes for 2 images, got a tensor "
            f"of shape {tuple(logits.shape)}. emptyset quantizes classifiers; detectors, "
            "segmenters and networks with a single output cannot be used."
        )
    if not bool(torch.isfinite(logits).all()):
        raise TeacherError(
            f"{where}: the logits of two images of Gaussian noise hold NaN or infinity, though "
            "all weights are finite. Check --mean, --std and the weights."
        )
    return int(logits.shape[1])


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names from a file: one a line, or JSON (a list, or an object by index).

    Raises:
        TeacherError: The file cannot be read as either.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        data = json.loads(text)
        if isinstance(data, dict):
            data = [data[str(index)] for index in range(len(data))]
        if not isinstance(data, list):
            raise TypeError(f"a JSON {type(data).__name__}")
        return tuple(str(name) for name in data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(
            f"{path}: not readable as class names ({type(error).__name__}: {error}). Expected "
            'text with one name a line, or JSON: ["cat", "dog"] or {"0": "cat", "1": "dog"}.'
        ) from error

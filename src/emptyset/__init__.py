"""Quantize a trained vision network from an empty dataset.

    teacher = emptyset.load("embedded:digits-resnet")
    images = emptyset.synthesize(teacher, "zeroq", count=256, seed=0)
    student = emptyset.prepare(teacher, "w8a8", plan="integer")
    emptyset.refine(student, images, "calibrate")
    artefact = emptyset.export(student, "model.onnx")
    print(emptyset.certify(artefact.path, student, images).summary())

Names are loaded on first use, so that ``import emptyset`` costs nothing beside torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from emptyset._version import __version__

if TYPE_CHECKING:
    from emptyset.bit_allocation.mixed_precision import mixed_precision
    from emptyset.comparison import compare
    from emptyset.errors import EmptysetError
    from emptyset.generation import source
    from emptyset.graph.student import Student
    from emptyset.images.image_set import ImageSet
    from emptyset.job import quantize, run
    from emptyset.measurement import measure
    from emptyset.pipeline import (
        certify,
        export,
        images_from,
        load,
        prepare,
        refine,
        select,
        synthesize,
    )
    from emptyset.recipe import Recipe
    from emptyset.teachers.teacher import Teacher

_HOMES = {
    "EmptysetError": "emptyset.errors",
    "ImageSet": "emptyset.images.image_set",
    "Recipe": "emptyset.recipe",
    "Student": "emptyset.graph.student",
    "Teacher": "emptyset.teachers.teacher",
    "certify": "emptyset.pipeline",
    "compare": "emptyset.comparison",
    "export": "emptyset.pipeline",
    "images_from": "emptyset.pipeline",
    "load": "emptyset.pipeline",
    "measure": "emptyset.measurement",
    "mixed_precision": "emptyset.bit_allocation.mixed_precision",
    "prepare": "emptyset.pipeline",
    "quantize": "emptyset.job",
    "refine": "emptyset.pipeline",
    "run": "emptyset.job",
    "select": "emptyset.pipeline",
    "source": "emptyset.generation",
    "synthesize": "emptyset.pipeline",
}

__all__ = [
    "EmptysetError",
    "ImageSet",
    "Recipe",
    "Student",
    "Teacher",
    "__version__",
    "certify",
    "compare",
    "export",
    "images_from",
    "load",
    "measure",
    "mixed_precision",
    "prepare",
    "quantize",
    "refine",
    "run",
    "select",
    "source",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module the first time it is used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'emptyset' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""What ``metrics.json`` holds: everything a run found, for people's scripts and for the page."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from emptyset._version import __version__
from emptyset.recipe import Recipe
from emptyset.recipe_without_images import NONE
from emptyset.run_folder import MIXED_PRECISION, RunFolder
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.exporters.onnx import Artefact
    from emptyset.graph.student import Student


def file_facts(artefact: "Artefact") -> dict[str, Any]:
    """What is told of the exported file: sizes, kernels, and what runs in float and why."""
    size, float_size = artefact.size_bytes, artefact.float_size_bytes
    return {
        "bytes": size,
        "float_bytes": float_size,
        "ratio": size / float_size if float_size else None,
        "integer_share": artefact.integer_share,
        "operators": dict(artefact.operators),
        "fallbacks": [asdict(fallback) for fallback in artefact.fallbacks],
        "notes": list(artefact.notes),
    }


def collect(
    folder: RunFolder,
    recipe: Recipe,
    teacher: Teacher,
    student: "Student",
    image_count: int,
    history: Sequence[dict[str, Any]],
    command: str,
) -> dict[str, Any]:
    """All results of a run.

    Args:
        folder: Gives the results of the stages.
        recipe: What was run.
        teacher: Its name and hashes are told.
        student: Its plan and float inputs are told.
        image_count: How many images the student was fitted to.
        history: What was done to make them.
        command: The command that repeats the run.
    """

    def result(stage: str) -> dict[str, Any]:
        record = folder.record(stage)
        return record.result if record else {}

    exported, guard = result("export"), result("guard")
    certificate = dict(exported.get("certificate", {}))
    return {
        "emptyset": __version__,
        "command": command,
        "recipe": recipe.to_data(),
        "recipe_hash": recipe.hash(),
        "teacher": {
            "name": teacher.name,
            "weights_hash": teacher.weights_hash,
            "input": asdict(teacher.input),
            "classes": len(teacher.class_names) if teacher.class_names else None,
            "provenance": teacher.provenance,
        },
        "plan": {
            "name": student.plan,
            "bits": str(student.bits),
            "batch_norm": student.batch_norm,
            "layers": len(student.layers()),
            "float_inputs": list(student.float_inputs),
        },
        "images": _images(recipe, image_count, history),
        "image_quality": result("image_quality") or None,
        "class_boundary": result("class_boundary").get("boundary"),
        "mixed_precision": folder.read_json(MIXED_PRECISION) if recipe.mixed_precision else None,
        "training": result("student").get("records", []),
        "evaluation": result("evaluation"),
        "guard": guard.get("verdict"),
        "simulated_agreement": guard.get("agreement"),
        "layers": guard.get("layers", []),
        "layer_images": guard.get("layer_images"),
        "file": exported.get("file"),
        "latency": exported.get("latency"),
        "certificate": certificate,
        "seconds": {k: v for k, v in folder.seconds().items() if k != "report"},
    }


def _images(recipe: Recipe, count: int, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    given = [{"stage": "images", "method": "given", "path": recipe.images}]
    if recipe.images == NONE:
        given = []
    section = recipe.synthesize or recipe.source
    beside = recipe.source.beside if recipe.source else None
    return {
        "source": recipe.images or (section.method if section else None),
        "made": recipe.images is None,
        "count": count,
        "history": [dict(entry) for entry in history] or given,
        **({"beside": beside.model_dump()} if beside else {}),
    }

"""Options that several commands share, and how their texts are read."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from emptyset.errors import RecipeError

TeacherName = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="embedded:digits-resnet, timm:NAME, torchvision:NAME, pytorchcv:NAME, "
        "hf:NAME-or-folder, file:WEIGHTS or file:",
        show_default=False,
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODULE:FUNCTION", help="Factory of the network, for file:."),
]
ModelArgsOption = Annotated[
    str | None,
    typer.Option("--model-args", metavar="JSON", help="Keyword arguments of the factory."),
]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="CxHxW", help="Size of one image, as 3x32x32.")
]
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="A,B,C", help="Per channel, pixels in 0..1.")
]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="A,B,C", help="Per channel, pixels in 0..1.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Local weights instead of a hub's."),
]
ClassesOption = Annotated[
    Path | None, typer.Option("--classes", metavar="FILE", help="Class names, one a line, or JSON.")
]
PickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Run code that a checkpoint holds. For trusted files."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute.")
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="GB",
        help="Memory that forwards and caches may take; batches shrink, caches spill.",
    ),
]
CountOption = Annotated[
    int | None, typer.Option("--count", metavar="N", help="Number of images.", show_default=False)
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Use an output folder that holds something else.")
]
ImagesOption = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR|FILE", help="Real images: a folder or an npz file."),
]
ClipOption = Annotated[
    str | None,
    typer.Option("--clip", metavar="NAME|DIR", help="Similarity in this CLIP model's eyes too."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


def numbers(text: str | None, option: str) -> list[float] | None:
    """``0.4,0.5,0.6`` as numbers.

    Raises:
        RecipeError: If one is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(
            f"{option}: expected numbers with commas between them, such as 0.491,0.482,0.447. "
            f"Got '{text}'."
        ) from error


def teacher_section(
    name: str,
    model: str | None,
    model_args: str | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    weights: Path | None,
    classes: Path | None,
) -> dict[str, Any]:
    """The recipe's ``teacher`` section from the options.

    Raises:
        RecipeError: If an option cannot be read.
    """
    section = {
        "name": name,
        "model": model,
        "model_args": _json_object(model_args),
        "input": input_size,
        "mean": numbers(mean, "--mean"),
        "std": numbers(std, "--std"),
        "weights": str(weights) if weights else None,
        "classes": str(classes) if classes else None,
    }
    return {key: value for key, value in section.items() if value is not None}


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RecipeError(
            f"--model-args: not readable as JSON ({error}). Write for example "
            "'{\"num_classes\": 10}'."
        ) from error
    if not isinstance(value, dict):
        raise RecipeError(
            f"--model-args: expected a JSON object such as {{\"num_classes\": 10}}. Got '{text}'."
        )
    return value


def settings_of(settings: list[str] | None, section: str) -> dict[str, Any]:
    """``--set steps=20`` of a command with one method, as data.

    Args:
        settings: As written; as a recipe has them, ``synthesize.steps=20``, will do too.
        section: The recipe's, of such a method.
    """
    from emptyset.recipe_text import apply_setting

    data: dict[str, Any] = {}
    for setting in settings or []:
        apply_setting(data, {}, setting.removeprefix(f"{section}."))
    return data

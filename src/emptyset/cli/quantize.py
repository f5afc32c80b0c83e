"""`emptyset quantize TEACHER`: the whole job."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from emptyset.cli.options import (
    ClassesOption,
    CountOption,
    DeviceOption,
    InputOption,
    JsonOption,
    MeanOption,
    MemoryOption,
    ModelArgsOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
    SeedOption,
    SetOption,
    StdOption,
    TeacherName,
    VerboseOption,
    WeightsOption,
    teacher_section,
)


def quantize(
    teacher: TeacherName,
    bits: Annotated[
        str | None, typer.Option("--bits", help="Weights and activations: w8a8, w4a8, w4a4 ...")
    ] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", help="integer (default), edges_8bit, every_layer.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Mixed precision: 0.6 (of the 8-bit size), 150kB, 4.5bits, 0.4xBOPs, 30GBOPs.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="METHOD|DIR|FILE|none",
            help="How images are made, real ones, or none at all.",
        ),
    ] = None,
    count: CountOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="What to start from; by default the practical recipe for the bits.",
        ),
    ] = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    input_size: InputOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    allow_pickle: PickleOption = False,
    min_agreement: Annotated[
        float | None,
        typer.Option("--min-agreement", metavar="P", help="Fail below this agreement, 0..1."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder; runs/TEACHER-BITS by default."),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Quantize a trained network: images, student, file, proof and report."""
    from emptyset.job.from_options import chosen_recipe, recipe_for
    from emptyset.recipe import Recipe, find_recipe
    from emptyset.recipe_by_bits import BY_BITS, practical_names

    section = teacher_section(teacher, model, model_args, input_size, mean, std, weights, classes)
    options: dict[str, Any] = {
        "bits": bits,
        "plan": plan,
        "images": images,
        "count": count,
        "seed": seed,
        "device": device,
        "memory": memory,
        "budget": budget,
        "min_agreement": min_agreement,
        "settings": settings or [],
    }
    loaded = None
    if recipe is None or recipe in practical_names():
        whole, loaded = chosen_recipe(
            section, practical=recipe or BY_BITS, allow_pickle=allow_pickle, **options
        )
    else:
        whole = recipe_for(section, base=Recipe.load(find_recipe(recipe)), **options)
    work(
        whole,
        out or Path("runs") / folder_name(teacher, bits_of(whole)),
        overwrite=overwrite,
        allow_pickle=allow_pickle,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
        teacher=loaded,
    )


def bits_of(recipe: Any) -> str:
    """``w4a8``, or ``w4a8-0.6`` with the budget of mixed precision."""
    mixed = recipe.mixed_precision
    return f"{recipe.plan.bits}-{mixed.budget}" if mixed else str(recipe.plan.bits)


def folder_name(teacher: str, bits: str) -> str:
    """``timm:resnet18.a1_in1k`` at ``w8a8`` as ``resnet18.a1_in1k-w8a8``."""
    stem = teacher.partition(":")[2]
    stem = Path(stem).stem if teacher.startswith("file:") else stem
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip("-.")
    return f"{readable or 'network'}-{bits}"


def work(
    recipe: Any,
    out: Path,
    *,
    overwrite: bool,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    teacher: Any = None,
) -> None:
    """Run a recipe, show progress, and print the result."""
    from emptyset.cli.freed_memory import keep_freed_memory
    from emptyset.cli.output import say, show_json, show_result
    from emptyset.cli.progress import shown_progress
    from emptyset.job import run

    if recipe.memory is not None:
        keep_freed_memory(tight=True)
    with shown_progress(quiet=quiet) as monitor:
        result = run(
            recipe,
            out,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            monitor=monitor,
            command=shlex.join(["emptyset", *sys.argv[1:]]),
            teacher=teacher,
        )
    if not result.done and not quiet:
        say(f"Nothing to do: {out} is up to date.")
    elif verbose:
        say(f"Stages run now: {', '.join(result.done)}.")
    if as_json:
        told = {"folder": str(out), "report": str(result.report), "done": list(result.done)}
        show_json(told | {"metrics": result.metrics})
    else:
        show_result(result.metrics, str(out), str(result.report))

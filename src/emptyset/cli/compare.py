"""`emptyset compare TEACHER --methods A,B`: which way to images is the best for this network."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from emptyset.cli.options import (
    ClassesOption,
    ClipOption,
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
    WeightsOption,
    teacher_section,
)
from emptyset.errors import RecipeError

YAML = (".yaml", ".yml")


def compare(
    teacher: Annotated[
        str,
        typer.Argument(
            metavar="TEACHER|FILE.yaml",
            help="As for `quantize`; or the compare.yaml of an earlier comparison.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help="Synthesizers, see `emptyset methods`; LABEL=METHOD to name one twice.",
        ),
    ] = None,
    count: CountOption = None,
    image_iterations: Annotated[
        int | None,
        typer.Option(
            "--image-iterations",
            metavar="N",
            help="Budget of every method: images times steps. Default: 100 per image.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="S", help="Budget of every method: wall time instead."),
    ] = None,
    own_settings: Annotated[
        bool,
        typer.Option("--own-settings", help="No common budget: every method as it is published."),
    ] = False,
    bits: Annotated[
        str | None, typer.Option("--bits", help="Of the students; w4a4 by default.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", help="integer (default), edges_8bit, every_layer.")
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option("--refine", metavar="A,B,...", help="Refiners, in order; calibrate."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="NAME|FILE", help="Where plan, refiners and the like come from."
        ),
    ] = None,
    settings: SetOption = None,
    labelled: Annotated[
        Path | None,
        typer.Option("--labelled", metavar="DIR|FILE", help="Images that give top-1."),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option("--real", metavar="DIR|FILE", help="Real images, for one more row."),
    ] = None,
    clip: ClipOption = None,
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
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder; runs/TEACHER-compare by default."),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare ways to images: one teacher, one budget, one way from images to a student."""
    from emptyset.cli.progress import shown_progress
    from emptyset.cli.quantize import folder_name
    from emptyset.comparison import comparison_for, run_comparison
    from emptyset.comparison.settings import Comparison
    from emptyset.recipe import Recipe, find_recipe

    section = teacher_section(teacher, model, model_args, input_size, mean, std, weights, classes)
    if teacher.endswith(YAML):
        given = {
            "--methods": methods, "--count": count, "--image-iterations": image_iterations,
            "--seconds": seconds, "--own-settings": own_settings or None, "--bits": bits,
            "--plan": plan, "--refine": refine, "--recipe": recipe, "--labelled": labelled,
            "--real": real, "--clip": clip, "--seed": seed, "--device": device,
            "--memory": memory, "--model and the like": section.keys() - {"name"} or None,
        }  # fmt: skip
        _refuse_beside_a_file(given)
        comparison = Comparison.load(Path(teacher), settings or [])
        folder = Path(teacher).parent if Path(teacher).name == "compare.yaml" else None
        folder = folder or Path("runs") / Path(teacher).stem
    else:
        comparison = comparison_for(
            section,
            _names(methods),
            base=Recipe.load(find_recipe(recipe)) if recipe else None,
            count=count,
            image_iterations=image_iterations,
            seconds=seconds,
            own_settings=own_settings,
            bits=bits,
            plan=plan,
            refine=_listed(refine) if refine else None,
            labelled=labelled,
            real=real,
            clip=clip,
            seed=seed,
            device=device,
            memory=memory,
            settings=settings or [],
        )
        folder = Path("runs") / folder_name(teacher, "compare")
    with shown_progress(quiet=quiet) as monitor:
        result = run_comparison(
            comparison,
            out or folder,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            monitor=monitor,
            command=shlex.join(["emptyset", *sys.argv[1:]]),
        )
    _show(result, as_json=as_json)


def _names(methods: str | None) -> list[str]:
    if not methods:
        raise RecipeError(
            "--methods: name the methods to compare, for example --methods zeroq,dffg. "
            "`emptyset methods` lists them."
        )
    return _listed(methods)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _refuse_beside_a_file(given: dict[str, Any]) -> None:
    """The file says everything; what differs is changed with --set."""
    wrong = [option for option, value in given.items() if value is not None]
    if wrong:
        raise RecipeError(
            f"{', '.join(wrong)}: the file says this already. Change it there, or with --set, for "
            "example --set count=512."
        )


def _show(result: Any, *, as_json: bool) -> None:
    from rich import box
    from rich.table import Table

    from emptyset.cli.output import console, show_json
    from emptyset.comparison.folder import PAGE, TABLE
    from emptyset.report.comparison_table import comparison_table, facts, notes

    if as_json:
        show_json(result.table)
        return
    shown, table = console(), comparison_table(result.table)
    for name, text in facts(result.table):
        shown.print(f"{name:<10} {text}", soft_wrap=True, highlight=False, markup=False)
    for half in table.halves():
        drawn = Table(box=box.SIMPLE_HEAD)
        for index, title in enumerate(half.titles):
            # Titles may wrap; numbers may not.
            widest = max((len(row[index]) for row in half.rows), default=0)
            drawn.add_column(title, justify="right" if index else "left", min_width=widest)
        for row in half.rows:
            drawn.add_row(*row)
        shown.print(drawn)
    for note in notes(result.table):
        shown.print(note, soft_wrap=True, highlight=False, markup=False)
    for name in (TABLE, PAGE):
        if (result.folder / name).is_file():
            shown.print(str(result.folder / name), soft_wrap=True, highlight=False)

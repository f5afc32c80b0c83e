"""`emptyset run RECIPE.yaml`: work through a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from emptyset.cli.options import (
    JsonOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
    SetOption,
    VerboseOption,
)
from emptyset.cli.quantize import work


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="File or name.", show_default=False)
    ],
    settings: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Run folder; of a run's own recipe.yaml that run, else runs/RECIPE.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Work through a recipe. What is done already is not done again."""
    from emptyset.recipe import Recipe, find_recipe
    from emptyset.run_folder import RECIPE, STAGES

    path = find_recipe(recipe)
    of_a_run = path.name == RECIPE and (path.parent / STAGES).is_file()
    work(
        Recipe.load(path, settings or []),
        out or (path.parent if of_a_run else Path("runs") / path.stem),
        overwrite=overwrite,
        allow_pickle=allow_pickle,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
    )

"""`emptyset select IMAGES TEACHER --out DIR`: keep the better part of stored images."""

from pathlib import Path
from typing import Annotated

import typer

from emptyset.cli.options import (
    DeviceOption,
    InputOption,
    JsonOption,
    MeanOption,
    ModelArgsOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    SetOption,
    StdOption,
    TeacherName,
    WeightsOption,
    settings_of,
    teacher_section,
)


def select(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Stored images.", show_default=False)
    ],
    teacher: TeacherName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the images go.")],
    method: Annotated[str, typer.Option("--method", help="See `emptyset methods`.")] = "energy",
    settings: SetOption = None,
    device: DeviceOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    input_size: InputOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    weights: WeightsOption = None,
    allow_pickle: PickleOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Keep the better part of stored images, as the teacher sees them."""
    from emptyset import pipeline
    from emptyset.cli.image_folder import already_there, show_images
    from emptyset.cli.output import say
    from emptyset.disk import disk_errors
    from emptyset.images.image_set import ImageSet
    from emptyset.images.stored_images_file import require_stored_for
    from emptyset.job.from_recipe import load_from
    from emptyset.recipe import Recipe

    section = teacher_section(teacher, model, model_args, input_size, mean, std, weights, None)
    recipe = Recipe.parse(
        {
            "teacher": section,
            "select": [{"method": method} | settings_of(settings, "select")],
            "device": device or "auto",
        }
    )
    if already_there(out, overwrite=overwrite):
        say(f"{out} holds images already; --overwrite replaces them.")
        raise typer.Exit(5)
    chosen = recipe.select[0]
    loaded = load_from(recipe, allow_pickle=allow_pickle)
    given = ImageSet.load(images)
    require_stored_for(images, tuple(given.images.shape[1:]), given.history, loaded.input)
    kept = pipeline.select(given, loaded, chosen.method, **chosen.settings())
    with disk_errors(out):
        kept.save(out)
    show_images(kept, out, as_json=as_json)

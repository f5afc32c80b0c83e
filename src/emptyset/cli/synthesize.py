"""`emptyset synthesize TEACHER --out DIR`: only the images."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emptyset.cli.options import (
    ClassesOption,
    DeviceOption,
    InputOption,
    JsonOption,
    MeanOption,
    ModelArgsOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
    SeedOption,
    SetOption,
    StdOption,
    TeacherName,
    WeightsOption,
    settings_of,
    teacher_section,
)
from emptyset.errors import RecipeError

if TYPE_CHECKING:
    from emptyset.teachers.teacher import Teacher

# Images whose pixels are looked at for a warning.
LOOKED_AT = 1024


def synthesize(
    teacher: TeacherName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the images go.")],
    method: Annotated[
        str | None, typer.Option("--method", help="See `emptyset methods`; zeroq by default.")
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Draw from the generator.safetensors of a run instead."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of images.")] = 1024,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards", metavar="N", min=1, help="WebDataset shards of N images, not one file."
        ),
    ] = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    input_size: InputOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    allow_pickle: PickleOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make images from a trained network. Killed, the same command goes on."""
    from emptyset import generation, pipeline
    from emptyset.cli.image_folder import already_there, leaving_nothing_empty, show_card
    from emptyset.cli.output import say
    from emptyset.cli.progress import shown_progress
    from emptyset.disk import disk_errors
    from emptyset.job.from_recipe import load_from
    from emptyset.kept_states import KeepingMonitor
    from emptyset.recipe import DEFAULT_METHOD, Recipe, hash_of
    from emptyset.teachers.untrained import untrained

    section = teacher_section(teacher, model, model_args, input_size, mean, std, weights, classes)
    if generator is not None:
        refuse_settings(method, settings)
        made_by: dict[str, Any] = {"method": DEFAULT_METHOD, "count": count}
    else:
        made_by = {"method": method or DEFAULT_METHOD, "count": count} | settings_of(
            settings, "synthesize"
        )
    recipe = Recipe.parse(
        {"teacher": section, "synthesize": made_by, "seed": seed or 0, "device": device or "auto"}
    )
    if already_there(out, overwrite=overwrite):
        say(f"{out} holds images already; --overwrite replaces them.")
        raise typer.Exit(5)
    loaded = load_from(recipe, allow_pickle=allow_pickle)
    if (doubt := untrained(loaded)) is not None:
        say(f"Warning: {doubt}")
    if generator is not None:
        # Seconds of work: nothing to keep on the way.
        with disk_errors(out):
            trained = generation.generator_from(generator, loaded)
            card = generation.draw_to(out, trained, count, seed=recipe.seed, per_shard=shards)
        show_card(card, out, as_json=as_json)
        _tell_beyond_pixels(out, loaded)
        return
    inputs = [recipe.hash(), loaded.weights_hash]
    partial = out / ".partial" / hash_of(inputs)[:12]
    with (
        leaving_nothing_empty(partial, out),
        disk_errors(out),
        shown_progress(quiet=quiet) as monitor,
    ):
        partial.mkdir(parents=True, exist_ok=True)
        keeping = KeepingMonitor(monitor, partial, lambda _: None)
        chosen = recipe.synthesize
        assert chosen is not None
        card = pipeline.synthesize_to(
            out,
            loaded,
            chosen.method,
            chosen.count,
            seed=recipe.seed,
            per_shard=shards,
            monitor=keeping,
            **chosen.settings(),
        )
        shutil.rmtree(out / ".partial")
    show_card(card, out, as_json=as_json)
    _tell_beyond_pixels(out, loaded)


def _tell_beyond_pixels(folder: Path, teacher: "Teacher") -> None:
    from emptyset import pipeline
    from emptyset.cli.output import say
    from emptyset.images.beyond_pixels import beyond_pixels

    images = pipeline.images_from(folder, teacher, limit=LOOKED_AT)
    counted = beyond_pixels((batch.images for batch in images.batches(64)), teacher.input)
    if (warning := counted.warning()) is not None:
        say(f"Warning: {warning}")


def refuse_settings(method: str | None, settings: list[str] | None) -> None:
    """A trained generator has its settings already.

    Raises:
        RecipeError: If a method or a setting is given beside it.
    """
    if method is not None or settings:
        given = "--method" if method is not None else "--set"
        raise RecipeError(
            f"{given}: --from draws from a generator whose method and settings were fixed when it "
            f"was trained. Leave {given} out."
        )

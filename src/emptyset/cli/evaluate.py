"""`emptyset evaluate`: what the file of a run lost, what images or a generator are worth."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from emptyset.cli.evaluate_generator import (
    GeneratorOptions,
    boundary_settings,
    evaluate_generator,
    holds_generator,
    path_pair,
)
from emptyset.cli.options import (
    ClipOption,
    DeviceOption,
    ImagesOption,
    InputOption,
    JsonOption,
    MeanOption,
    ModelArgsOption,
    ModelOption,
    PickleOption,
    QuietOption,
    SeedOption,
    StdOption,
    WeightsOption,
    teacher_section,
)
from emptyset.cli.output import require_places
from emptyset.errors import RecipeError, RunFolderError


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|IMAGES|GENERATOR",
            help="A run folder; or, with --teacher, images (stored ones, a folder, an npz file) or "
            "the generator.safetensors of a run.",
            show_default=False,
        ),
    ],
    images: ImagesOption = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="TEACHER", help="Judge images as this network does."),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option("--real", metavar="DIR|FILE", help="Real images to compare with."),
    ] = None,
    clip: ClipOption = None,
    variance: Annotated[
        bool,
        typer.Option("--variance", help="BatchNorm distance of variances, not of deviations."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=2,
            help="At most this many images of each; of a generator 1,024 by default.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a page with pictures too."),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs", metavar="N", min=0, help="Of a generator: most pairs of classes; 0: all."
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option("--noise", metavar="auto|zero|drawn", help="Between two classes."),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option("--pair", metavar="A,B", help="Classes of the path that is pictured."),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(
            "--per-class",
            metavar="N",
            min=8,
            help="Images of each class in a generator's map, and 9 N between classes; 100.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="DIR", help="Write a generator's pictures as PNG."),
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    input_size: InputOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    weights: WeightsOption = None,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What a run's file lost, on images of your choice; or, with --teacher, how good images are.

    Of a run: agreement with its teacher, and top-1 and top-5 with labels.

    Of images: BatchNorm distance, similarity, class agreement; with --real, the nearest real ones.

    Of a generator: what lies between its classes; with --real, the real images nearest to its own.
    """
    of_generator = {
        "--pairs": pairs, "--noise": noise, "--pair": pair, "--pictures": pictures, "--seed": seed,
        "--per-class": per_class,
    }  # fmt: skip
    if teacher is None:
        only = {
            "--real": real, "--clip": clip, "--variance": variance or None, "--limit": limit,
            "--report": report,
        }  # fmt: skip
        _refuse("judges images, so it needs --teacher", only)
        _refuse("judges a generator, so it needs --teacher", of_generator)
        own = {
            "--model": model, "--model-args": model_args, "--input": input_size, "--mean": mean,
            "--std": std, "--weights": weights, "--device": device,
            "--allow-pickle": allow_pickle or None,
        }  # fmt: skip
        _refuse("a run's recipe says how its network is loaded and shown images, and where", own)
        _evaluate_run(run, images, as_json=as_json, quiet=quiet)
        return
    _refuse("belongs to a run; the images are the first argument here", {"--images": images})
    section = teacher_section(teacher, model, model_args, input_size, mean, std, weights, None)
    require_places(report=report, pictures=pictures)
    if holds_generator(run):
        _refuse("judges images, not a generator", {"--clip": clip, "--variance": variance or None})
        evaluate_generator(
            run,
            GeneratorOptions(section, device or "auto", real, limit, report, pictures, seed or 0),
            boundary_settings(pairs, noise),
            _given({"--pairs": pairs, "--noise": noise}),
            path_pair(pair),
            per_class,
            allow_pickle=allow_pickle,
            as_json=as_json,
            quiet=quiet,
        )
        return
    _refuse("judges a generator, not images", of_generator)
    _evaluate_images(
        run,
        section,
        real=real,
        clip=clip,
        variance=variance,
        limit=limit,
        report=report,
        device=device,
        allow_pickle=allow_pickle,
        as_json=as_json,
        quiet=quiet,
    )


def _given(options: dict[str, Any]) -> list[str]:
    return [option for option, value in options.items() if value is not None]


def _refuse(why: str, options: dict[str, Any]) -> None:
    if wrong := _given(options):
        raise RecipeError(f"{wrong[0]}: {why}.")


def _evaluate_run(run: Path, images: Path | None, *, as_json: bool, quiet: bool) -> None:
    from emptyset import measurement
    from emptyset.cli.output import say, show_json
    from emptyset.cli.progress import shown_progress
    from emptyset.images.image_set import CARD_NAME
    from emptyset.job.restored import restore
    from emptyset.run_folder import MODEL

    if (run / CARD_NAME).is_file():
        raise RunFolderError(
            f"{run}: holds images, not a run. To judge images, name the network that judges them: "
            "--teacher TEACHER."
        )
    if holds_generator(run):
        raise RunFolderError(
            f"{run}: is a generator, not a run. To judge it, name the network that it was trained "
            "for: --teacher TEACHER."
        )
    restored = restore(run)
    shown, described = restored.judged_images(images)
    student = restored.student
    # The student keeps the teacher's own weights: no hub and no weights file is needed here.
    with shown_progress(quiet=quiet) as monitor, student.float_mode():
        found = measurement.measure(
            restored.file(MODEL),
            student,
            shown,
            seed=restored.recipe.seed,
            batch_size=measurement.batch_size_for(student.teacher.input.shape),
            monitor=monitor,
        )
    result = {"on": described, "count": len(shown)} | found.to_json()
    if as_json:
        show_json(result)
    else:
        _show(found, described)
    if (doubt := found.doubt()) is not None:
        say(f"Warning: {doubt}")


def _show(found: Any, described: str) -> None:
    from emptyset.report.facts import percent

    agreed = asdict(found.agreement)
    print(f"on         {agreed['count']} images: {described}")
    if found.teacher is not None and found.quantized is not None:
        print(
            f"float      top-1 {percent(found.teacher.top1)}, top-5 {percent(found.teacher.top5)}"
        )
        print(
            f"quantized  top-1 {percent(found.quantized.top1)}, "
            f"top-5 {percent(found.quantized.top5)}"
        )
    print(
        f"agreement  {percent(agreed['share'])} "
        f"({percent(agreed['low'])} to {percent(agreed['high'])}), KL {agreed['kl']:.4g} nats"
    )


def _evaluate_images(
    path: Path,
    section: dict[str, Any],
    *,
    real: Path | None,
    clip: str | None,
    variance: bool,
    limit: int | None,
    report: Path | None,
    device: str | None,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from emptyset import __version__, measurement, pipeline
    from emptyset.cli.output import show_json
    from emptyset.cli.progress import shown_progress
    from emptyset.evaluate.image_quality import compared_quality
    from emptyset.evaluate.nearest_neighbours import nearest_neighbours
    from emptyset.job.from_recipe import load_from
    from emptyset.recipe import Recipe

    recipe = Recipe.parse({"teacher": section, "device": device or "auto"})
    teacher = load_from(recipe, allow_pickle=allow_pickle)
    images = pipeline.images_from(path, teacher, limit=limit)
    others = None if real is None else pipeline.images_from(real, teacher, limit=limit)
    encoder = None
    if clip is not None:
        from emptyset.evaluate.clip_similarity import ClipEncoder

        encoder = ClipEncoder.load(clip, device=teacher.example(1).device)
    batch_size = measurement.batch_size_for(teacher.input.shape)
    with shown_progress(quiet=quiet) as monitor:
        found, beside = compared_quality(
            images,
            others,
            teacher,
            batch_size=batch_size,
            variance=variance,
            clip=encoder,
            monitor=monitor,
        )
        nearest = None
        if others is not None:
            nearest = nearest_neighbours(
                images, others, teacher, batch_size=batch_size, monitor=monitor
            )
    result = {
        "emptyset": __version__,
        "teacher": {"name": teacher.name, "weights_hash": teacher.weights_hash},
        "path": str(path),
        "real_path": None if real is None else str(real),
        "images": found.to_json(),
        "real": None if beside is None else beside.to_json(),
        "neighbours": None if nearest is None else nearest.to_json(),
    }
    if report is not None:
        from emptyset.disk import disk_errors
        from emptyset.report.contact_sheet import contact_sheet
        from emptyset.report.images_page import write_quality_page

        sheet = contact_sheet(images, teacher.input, real=others, class_names=teacher.class_names)
        with disk_errors(report.parent):
            report.parent.mkdir(parents=True, exist_ok=True)
            write_quality_page(report, result, sheet, nearest)
    if as_json:
        show_json(result)
    else:
        _show_quality(result, report)


def _show_quality(result: dict[str, Any], report: Path | None) -> None:
    from rich import box
    from rich.table import Table

    from emptyset.cli.neighbour_table import neighbour_table
    from emptyset.cli.output import console
    from emptyset.report.quality import quality_rows

    sets = {name: result[name] for name in ("images", "real") if result[name]}
    title = f"{result['path']} as {result['teacher']['name']} sees it"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    for name, found in sets.items():
        table.add_column(f"{name} ({found['count']:,})", justify="right")
    table.add_column("", overflow="fold")
    for row in quality_rows(sets):
        table.add_row(row.name, *row.values, row.remark)
    shown = console()
    shown.print(table)
    if result["neighbours"] is not None:
        shown.print(neighbour_table(result["neighbours"]))
    if report is not None:
        shown.print(f"report  {report}", soft_wrap=True, highlight=False)

"""`emptyset evaluate GENERATOR --teacher T`: what lies between its classes, and beside it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset.errors import RecipeError, UnsupportedModelError

if TYPE_CHECKING:
    from rich.table import Table

    from emptyset.evaluate.class_boundary import BoundarySettings


# Images that are drawn to be compared with real ones.
DRAWN = 1024


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of the command that say what is read and written.

    Attributes:
        teacher: The recipe's ``teacher`` section.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        real: Real images, for the nearest neighbours and the pictures.
        limit: At most this many of them, and of the generator's beside them.
        report: The page.
        pictures: Folder of the PNG files.
        seed: Of pairs, noise and drawn images.
    """

    teacher: dict[str, Any]
    device: str
    real: Path | None
    limit: int | None
    report: Path | None
    pictures: Path | None
    seed: int


def holds_generator(path: Path) -> bool:
    """Whether a file is to be judged as a generator: any safetensors file but stored images.

    A damaged one and one of something else are, too: what is wrong is said where it is read.
    """
    from safetensors import SafetensorError, safe_open

    from emptyset.generators.generator_file import CARD
    from emptyset.images.image_set import FILE_NAME

    if not path.is_file() or path.suffix != ".safetensors":
        return False
    if path.name != FILE_NAME:
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return CARD in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def boundary_settings(pairs: int | None, noise: str | None) -> "BoundarySettings":
    """``--pairs`` and ``--noise`` as settings.

    Raises:
        RecipeError: If the noise is of no known kind.
    """
    from emptyset.evaluate.class_boundary import BoundarySettings

    given: dict[str, Any] = {}
    if pairs is not None:
        given["pairs"] = pairs or None
    if noise is not None:
        given["noise"] = noise
    return BoundarySettings(**given)


def path_pair(text: str | None) -> tuple[int, int] | None:
    """``--pair 3,5`` as two classes.

    Raises:
        RecipeError: If it is no such text.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise RecipeError(
            f"--pair: expected two class numbers with a comma between them, such as 3,5. Got "
            f"'{text}'."
        )
    return int(parts[0]), int(parts[1])


def evaluate_generator(
    path: Path,
    options: GeneratorOptions,
    settings: "BoundarySettings",
    given: list[str],
    pair: tuple[int, int] | None,
    per_class: int | None = None,
    *,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure class boundaries, compare with real images, and draw pictures, where asked for.

    Args:
        path: The generator.
        options: What is read and written.
        settings: How boundaries are measured.
        given: Options that say so.
        pair: Classes of the path that is pictured.
        per_class: Images of each class in the map, beside nine times as many between classes.
        allow_pickle: Run code that a checkpoint of the teacher holds.
        as_json: Print JSON.
        quiet: No progress.

    Raises:
        RecipeError: If a pair or a number of images is given and nothing is pictured, or a limit
            without real images.
        ImagesError: If the generator belongs to another teacher, or collapsed; or if there are
            fewer than 2 real images.
        UnsupportedModelError: If it makes images without labels, and nothing else, or how to
            measure boundaries, is asked for.
    """
    from emptyset import __version__, generation, measurement, pipeline
    from emptyset.cli.output import show_json
    from emptyset.cli.progress import shown_progress
    from emptyset.evaluate.class_boundary import class_boundary
    from emptyset.evaluate.generator_pictures import (
        PictureSettings,
        generator_pictures,
        require_pair,
    )
    from emptyset.evaluate.nearest_neighbours import nearest_neighbours, require_counts
    from emptyset.generators.drawn_images import DrawnImages
    from emptyset.job.from_recipe import load_from
    from emptyset.recipe import Recipe

    pictured = options.report is not None or options.pictures is not None
    _require_belonging(options, pair, per_class, pictured=pictured)
    recipe = Recipe.parse({"teacher": options.teacher, "device": options.device})
    teacher = load_from(recipe, allow_pickle=allow_pickle)
    source = generation.generator_from(path, teacher)
    if given and not source.method.labelled:
        raise UnsupportedModelError(
            f"{given[0]}: {source.method.name} makes images without labels, so there is nothing "
            f"between classes to measure. Leave {given[0]} out."
        )
    real = None
    if options.real is not None:
        real = pipeline.images_from(options.real, teacher, limit=options.limit)
    # Before the work, which is long.
    require_pair(pair, source.generator.classes, teacher.name)
    if real is not None:
        require_counts(options.limit or DRAWN, len(real))
    shown = PictureSettings(pair=pair)
    if per_class is not None:
        # As the paper's 1,000 and 9,000.
        shown = replace(shown, per_class=per_class, superposed=9 * per_class)
    size = measurement.batch_size_for(teacher.input.shape)
    with shown_progress(quiet=quiet) as monitor:
        found = pictures = nearest = None
        # Without labels nothing lies between classes; what is asked for beside it can be told.
        if source.method.labelled or (real is None and not pictured):
            found = class_boundary(
                source, teacher, settings, seed=options.seed, batch_size=size, monitor=monitor
            )
        if real is not None:
            drawn = DrawnImages(source, options.limit or DRAWN, options.seed)
            nearest = nearest_neighbours(drawn, real, teacher, batch_size=size, monitor=monitor)
        if pictured:
            pictures = generator_pictures(
                source,
                teacher,
                shown,
                real=real,
                seed=options.seed,
                batch_size=size,
                monitor=monitor,
            )
    missing = None if pictures is None else list(pictures.missing)
    if found is None and pictures is None:
        missing = [
            f"The table of class boundaries: {source.method.name} makes images without labels."
        ]
    result = {
        "emptyset": __version__,
        "teacher": {"name": teacher.name, "weights_hash": teacher.weights_hash},
        "path": str(path),
        "method": source.method.name,
        "seed": options.seed,
        "real_path": None if options.real is None else str(options.real),
        "real_count": None if real is None else len(real),
        "class_boundary": None if found is None else found.to_json(),
        "neighbours": None if nearest is None else nearest.to_json(),
        "not_shown": missing,
    }
    written = [] if pictures is None else _written(options, result, pictures, nearest)
    if as_json:
        show_json(result)
    else:
        _show(result, written)


def _require_belonging(
    options: GeneratorOptions,
    pair: tuple[int, int] | None,
    per_class: int | None,
    *,
    pictured: bool,
) -> None:
    """Refuse options of pictures, and of real images, where there are none."""
    for option, value in (("--pair", pair), ("--per-class", per_class)):
        if value is not None and not pictured:
            raise RecipeError(
                f"{option}: is for a generator's pictures. Ask for them with --report FILE or "
                "--pictures DIR."
            )
    if options.limit is not None and options.real is None:
        raise RecipeError(
            "--limit: is for images that are compared with real ones. Give these with --real DIR."
        )


def _written(
    options: GeneratorOptions, result: dict[str, Any], pictures: Any, nearest: Any
) -> list[Path]:
    """Write the page and the pictures, whichever are asked for."""
    from emptyset.disk import disk_errors
    from emptyset.report.generator_figures import write_figures
    from emptyset.report.generator_section import write_generator_page

    written = []
    if options.pictures is not None:
        with disk_errors(options.pictures):
            written += write_figures(options.pictures, pictures)
    if options.report is not None:
        with disk_errors(options.report.parent):
            options.report.parent.mkdir(parents=True, exist_ok=True)
            write_generator_page(options.report, result, pictures, nearest)
        written.append(options.report)
    return written


def _show(result: dict[str, Any], written: list[Path]) -> None:
    from emptyset.cli.neighbour_table import neighbour_table
    from emptyset.cli.output import console
    from emptyset.report.generator_section import boundary_note, drawn_note

    shown = console()
    if result["class_boundary"] is not None:
        shown.print(_boundary_table(result))
        shown.print(boundary_note(result["class_boundary"]), highlight=False)
    if result["neighbours"] is not None:
        shown.print(neighbour_table(result["neighbours"]))
        shown.print(drawn_note(result), highlight=False)
    for sentence in result["not_shown"] or ():
        shown.print(f"not shown: {sentence}", highlight=False)
    for path in written:
        shown.print(f"wrote  {path}", soft_wrap=True, highlight=False)


def _boundary_table(result: dict[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    from emptyset.report.generator_section import boundary_rows

    title = f"{result['path']} as {result['teacher']['name']} sees it"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("between two classes")
    table.add_column("distance ratio", justify="right")
    table.add_column("intrusion", justify="right")
    for row in boundary_rows(result["class_boundary"]):
        table.add_row(row.name, row.ratio, row.intrusion)
    return table

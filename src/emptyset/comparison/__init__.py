"""Several ways to images compared: one teacher, one budget, one way from images to a student."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emptyset._version import __version__
from emptyset.comparison.folder import PAGE, RESULT, TABLE, claimed, write_text
from emptyset.comparison.rows import Surroundings
from emptyset.comparison.settings import Comparison
from emptyset.comparison.work import Work
from emptyset.disk import disk_errors
from emptyset.errors import MissingExtraError, RecipeError
from emptyset.job.from_recipe import load_from
from emptyset.kept_states import KEEP_EVERY
from emptyset.monitor import SILENT, Monitor
from emptyset.recipe import Recipe
from emptyset.report.comparison_table import markdown


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison gave.

    Attributes:
        folder: Its folder.
        table: What ``compare.json`` holds.
    """

    folder: Path
    table: dict[str, Any]


def run_comparison(
    comparison: Comparison,
    out: Path | str,
    *,
    overwrite: bool = False,
    allow_pickle: bool = False,
    monitor: Monitor = SILENT,
    keep_every: float = KEEP_EVERY,
    command: str | None = None,
) -> ComparisonResult:
    """Work through all rows. Killed at any moment, the same call goes on where it stopped.

    Args:
        comparison: What is compared.
        out: The folder: ``compare.md``, ``compare.json``, ``compare.html``, and a run folder per
            row under ``rows/``.
        overwrite: Take a folder of another comparison; what rows share with this one is kept.
        allow_pickle: Run code that a checkpoint's pickle holds. Only for files you trust.
        monitor: Hears of progress.
        keep_every: Least time between two kept states [seconds].
        command: The command to repeat it, for the tables; one with ``compare.yaml`` where None.

    Raises:
        RunFolderError: If the folder belongs to another comparison or cannot be written.
        EmptysetError: The first fault, if no row could be finished.
    """
    out = Path(out)
    command = command or f"emptyset compare {out / 'compare.yaml'} --out {out}"
    with claimed(out, comparison, overwrite=overwrite):
        recipe = Recipe.parse(comparison.recipe_data(comparison.methods[0]))
        teacher = load_from(recipe, allow_pickle=allow_pickle)
        clip = None
        if comparison.clip is not None:
            from emptyset.evaluate.clip_similarity import ClipEncoder

            clip = ClipEncoder.load(comparison.clip, device=teacher.example(1).device)
        work = Work(Surroundings(comparison, out, teacher, monitor, clip, keep_every))

        def tell(so_far: Work) -> None:
            with disk_errors(out):
                _write(out, _table(so_far, recipe, command))

        work.run(tell)
        table = _table(work, recipe, command)
        with disk_errors(out):
            _write_page(out, table, work, monitor)
    return ComparisonResult(out, table)


def _table(work: Work, recipe: Recipe, command: str) -> dict[str, Any]:
    """What ``compare.json`` holds."""
    comparison, teacher = work.at.comparison, work.at.teacher
    judged = work.judged
    assert judged is not None
    finished = [row["student"] for row in work.rows if row["student"]]
    plan = None
    if finished:
        some = finished[0]
        plan = {"name": some["plan"], "bits": some["bits"], "layers": some["layers"]}
        plan["float_inputs"] = some["float_inputs"]
    rows = len(comparison.methods) + (comparison.real is not None)
    return {
        "emptyset": __version__,
        "command": command,
        "comparison": comparison.to_data(),
        "hash": comparison.hash(),
        "complete": len(work.rows) == rows,
        "teacher": {
            "name": teacher.name,
            "weights_hash": teacher.weights_hash,
            "accuracy": finished[0]["teacher"] if finished else None,
        },
        "plan": plan,
        "refine": [section.method for section in recipe.refine],
        "budget": comparison.budget.described(),
        "judged": {
            "on": judged.described,
            "count": len(judged.images),
            "labelled": judged.labelled,
        },
        "rows": work.rows,
    }


def _write(out: Path, table: dict[str, Any]) -> None:
    write_text(out / RESULT, json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    write_text(out / TABLE, markdown(table))


def _write_page(out: Path, table: dict[str, Any], work: Work, monitor: Monitor) -> None:
    from emptyset.report.images_page import write_comparison_page

    try:
        write_comparison_page(out / PAGE, table, work.sheets)
    except MissingExtraError as error:
        # The tables are written, and the page shows nothing that a later run could not.
        monitor.note(f"Warning: {out / PAGE} was not written. {error}")


def compare(
    teacher: str,
    methods: Sequence[str],
    *,
    out: Path | str,
    count: int | None = None,
    image_iterations: int | None = None,
    seconds: float | None = None,
    own_settings: bool = False,
    bits: str | None = None,
    plan: str | None = None,
    refine: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    labelled: Path | str | None = None,
    real: Path | str | None = None,
    clip: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    memory: float | None = None,
    settings: Sequence[str] = (),
    teacher_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    monitor: Monitor = SILENT,
) -> ComparisonResult:
    """Compare methods in one call, with the defaults of ``emptyset compare``.

    Args:
        teacher: For example ``embedded:digits-resnet``.
        methods: Synthesizers, each ``METHOD`` or ``LABEL=METHOD``.
        out: The folder.
        count: Images of every row; 1,024 where None.
        image_iterations: What every method may spend: images times steps; 100 per image where
            nothing else is said.
        seconds: What every method may spend instead: wall time of making the images.
        own_settings: No common budget: every method as its settings have it.
        bits: For example ``w4a4``, the default.
        plan: ``integer``, ``edges_8bit`` or ``every_layer``.
        refine: Refiners, in order; ``calibrate`` where None.
        recipe: Where plan, refiners, selectors and the like come from, instead of the defaults.
        labelled: Labelled images that every student is judged on.
        real: Real images, for one more row.
        clip: A CLIP model, by its name on the hub or its folder.
        seed: Seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        memory: Memory that forwards of a student may take [GB].
        settings: ``KEY=VALUE`` changes; rows go by their labels (``methods.dffg.restart=true``).
        teacher_options: More of the ``teacher`` section.
        overwrite: Take a folder of another comparison.
        monitor: Hears of progress.
    """
    comparison = comparison_for(
        {"name": teacher, **(teacher_options or {})},
        methods,
        base=recipe,
        count=count,
        image_iterations=image_iterations,
        seconds=seconds,
        own_settings=own_settings,
        bits=bits,
        plan=plan,
        refine=refine,
        labelled=labelled,
        real=real,
        clip=clip,
        seed=seed,
        device=device,
        memory=memory,
        settings=settings,
    )
    return run_comparison(comparison, out, overwrite=overwrite, monitor=monitor)


def comparison_for(
    teacher: Mapping[str, Any],
    methods: Sequence[str],
    *,
    base: Recipe | None = None,
    count: int | None = None,
    image_iterations: int | None = None,
    seconds: float | None = None,
    own_settings: bool = False,
    bits: str | None = None,
    plan: str | None = None,
    refine: Sequence[str] | None = None,
    labelled: Path | str | None = None,
    real: Path | str | None = None,
    clip: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    memory: float | None = None,
    settings: Sequence[str] = (),
) -> Comparison:
    """A comparison from what the options say; see ``compare`` for their meaning.

    Args:
        teacher: The ``teacher`` section.
        methods: Synthesizers, each ``METHOD`` or ``LABEL=METHOD``.
        base: A recipe whose plan, refiners and the like are taken.
        count: Images of every row.
        image_iterations: Budget of every method.
        seconds: The same as wall time.
        own_settings: No common budget.
        bits: Of weights and activations.
        plan: Name of the plan.
        refine: Refiners, in order.
        labelled: Labelled images.
        real: Real images.
        clip: A CLIP model.
        seed: Seed of everything random.
        device: Where to compute.
        memory: Memory that forwards of a student may take [GB].
        settings: ``KEY=VALUE`` changes on top.

    Raises:
        RecipeError: If an option is wrong, or two budgets are given.
    """
    data = _sections_of(base)
    data |= {"teacher": dict(teacher), "methods": [_row(text) for text in methods]}
    budget = {"image_iterations": image_iterations, "seconds": seconds}
    chosen: dict[str, Any] = {name: value for name, value in budget.items() if value is not None}
    if own_settings:
        chosen["own_settings"] = True
    whole = {
        "budget": chosen or None,
        "count": count,
        "labelled": None if labelled is None else str(labelled),
        "real": None if real is None else str(real),
        "clip": clip,
        "seed": seed,
        "device": device,
        "memory": memory,
        "refine": None if refine is None else [{"method": name} for name in refine],
    }
    data |= {name: value for name, value in whole.items() if value is not None}
    section = {"bits": bits, "name": plan}
    said = {name: value for name, value in section.items() if value is not None}
    if said:
        data["plan"] = data.get("plan", {}) | said
    return Comparison.parse(data, settings=settings)


def _sections_of(base: Recipe | None) -> dict[str, Any]:
    """What a recipe says of everything but its teacher and its images."""
    data = {} if base is None else base.to_data()
    if "evaluate" in data:
        data["evaluate"].pop("images", None)
    images = ("teacher", "synthesize", "images", "count")
    return {name: value for name, value in data.items() if name not in images}


def _row(text: str) -> dict[str, Any]:
    """``METHOD`` or ``LABEL=METHOD``."""
    label, equals, method = text.partition("=")
    if not equals:
        return {"method": text}
    if not label or not method:
        raise RecipeError(f"--methods: expected METHOD or LABEL=METHOD. Got '{text}'.")
    return {"label": label, "method": method}

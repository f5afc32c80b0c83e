"""A whole run: a recipe worked through in a run folder, each stage only where not done yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emptyset.disk import fingerprint
from emptyset.errors import CertificateError, CollapseError
from emptyset.job.context import RunContext
from emptyset.job.from_options import chosen_recipe
from emptyset.job.from_options import recipe_for as recipe_for
from emptyset.job.from_recipe import load_from
from emptyset.job.image_stages import fitted_images, judged_images, refuse_unjudged
from emptyset.job.mixed_precision import refuse_early
from emptyset.job.source_stages import drawn_images, first_images, require_source
from emptyset.job.stages import Stages, prepared_early
from emptyset.kept_states import KEEP_EVERY
from emptyset.monitor import SILENT, Monitor
from emptyset.recipe import Recipe, find_recipe
from emptyset.run_folder import METRICS, REJECTED, REPORT, RunFolder
from emptyset.teachers.teacher import Teacher
from emptyset.teachers.untrained import untrained


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        folder: The run folder.
        metrics: What ``metrics.json`` holds.
        report: Path of the page.
        done: Names of the stages that were run now; empty when everything was there already.
    """

    folder: Path
    metrics: dict[str, Any]
    report: Path
    done: tuple[str, ...]


def run(
    recipe: Recipe | Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    allow_pickle: bool = False,
    monitor: Monitor = SILENT,
    keep_every: float = KEEP_EVERY,
    command: str | None = None,
    teacher: Teacher | None = None,
) -> RunResult:
    """Work through a recipe. Killed at any moment, the same call goes on where it stopped.

    Args:
        recipe: A recipe, or the name or file of one.
        out: The run folder.
        overwrite: Take a folder of another recipe; stages with equal inputs are kept.
        allow_pickle: Run code that a checkpoint's pickle holds. Only for files you trust.
        monitor: Hears of progress.
        keep_every: Least time between two kept states [seconds].
        command: The command to repeat the run, for the report; ``emptyset run`` where None.
        teacher: What the recipe's ``teacher`` section names, where it is loaded already.

    Raises:
        RunFolderError: If the folder belongs to another run or cannot be written.
        CollapseError: If the agreement is below ``evaluate.min_agreement``.
        CertificateError: If the file does not compute what was simulated.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(find_recipe(str(recipe)))
    out = Path(out)
    with RunFolder.claim(out, recipe, overwrite=overwrite) as folder:
        if teacher is None and _may_have_changed(recipe.teacher.name):
            teacher = load_from(recipe, allow_pickle=allow_pickle)
        inputs = _outer_inputs(recipe, teacher)
        if folder.finished("run", inputs):
            return _result(folder, ())
        teacher = teacher or load_from(recipe, allow_pickle=allow_pickle)
        folder.begin(recipe)
        if recipe.about is not None:
            folder.log(recipe.about)
            monitor.note(recipe.about)
        if (doubt := untrained(teacher)) is not None:
            monitor.note(f"Warning: {doubt}")
        context = RunContext(folder, recipe, teacher, monitor, keep_every)
        refuse_early(context)
        refuse_unjudged(context)
        require_source(context)
        student = prepared_early(context)
        early = first_images(context)
        fitted = early or fitted_images(context)
        judged = None if early else judged_images(context, fitted)
        stages = Stages(context, fitted, judged, student)
        stages.student()
        if early:
            stages.look_at(*drawn_images(context))
        verdict = stages.guard()
        least = recipe.evaluate.min_agreement
        if least is not None and verdict is not None and verdict.agreement < least:
            folder.discard("run", "report", "evaluation", "export")
            raise CollapseError(
                f"{verdict.message()}\nThe limit is {least:.1%} (--min-agreement), so no file "
                f"was written. The run is in {out}."
            )
        certificate = stages.export()
        if not certificate["holds"]:
            folder.discard("run", "report", "evaluation")
            raise CertificateError(
                f"The file does not compute what was simulated: {certificate['fault']}. "
                f"It was left as {out / REJECTED} and must not be used. Run `emptyset check "
                f"{out}` to see it again, and please report it."
            )
        stages.evaluation()
        stages.report(command or f"emptyset run {out / 'recipe.yaml'} --out DIR")
        folder.mark_whole("run", inputs)
        folder.close()
        return _result(folder, tuple(context.done))


def _may_have_changed(teacher: str) -> bool:
    """Whether the same name may stand for other weights by now, whatever files are named."""
    kind, _, place = teacher.partition(":")
    return kind == "file" or (place != "" and Path(place).exists())


def _outer_inputs(recipe: Recipe, teacher: Teacher | None) -> dict[str, Any]:
    """What tells whether a finished run is still up to date, best without loading a network."""
    changes = _may_have_changed(recipe.teacher.name)
    files = [
        recipe.teacher.weights,
        recipe.teacher.name.removeprefix("file:") if recipe.teacher.name[:5] == "file:" else None,
        recipe.teacher.classes,
        recipe.images,
        recipe.evaluate.images,
        recipe.source.beside.images if recipe.source and recipe.source.beside else None,
    ]
    return {
        "recipe": recipe.hash(),
        "teacher": teacher.weights_hash if changes and teacher is not None else None,
        "files": [
            fingerprint(Path(name)) if name and Path(name).exists() else None for name in files
        ],
    }


def _result(folder: RunFolder, done: tuple[str, ...]) -> RunResult:
    return RunResult(folder.path, folder.read_json(METRICS), folder.path / REPORT, done)


def quantize(
    teacher: str,
    bits: str = "w8a8",
    *,
    out: Path | str,
    plan: str = "integer",
    images: str | None = None,
    count: int | None = None,
    seed: int = 0,
    device: str = "auto",
    memory: float | None = None,
    settings: Sequence[str] = (),
    teacher_options: Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    min_agreement: float | None = None,
    overwrite: bool = False,
    monitor: Monitor = SILENT,
) -> RunResult:
    """The whole job in one call, with the defaults of ``emptyset quantize``.

    What is done is the practical recipe for these bits and this network; ``recipe.about`` in the
    metrics says which and why.

    Args:
        teacher: For example ``embedded:digits-resnet`` or ``timm:resnet18.a1_in1k``.
        bits: For example ``w4a8``.
        out: The run folder.
        plan: ``integer``, ``edges_8bit`` or ``every_layer``.
        images: A synthesizer's name, a folder or file of real images, or ``none``: without any
            image; those of the practical recipe where None.
        count: Number of images.
        seed: Seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        memory: Memory that forwards of the student may take [GB].
        settings: ``KEY=VALUE`` changes of the recipe.
        teacher_options: More of the recipe's ``teacher`` section, for example ``{"weights":
            "resnet18.safetensors"}``.
        budget: Mixed precision within ``0.6`` of the 8-bit size, ``150kB``, ``4.5bits`` on average,
            ``0.4xBOPs`` or the like; None: the same bits in every layer.
        min_agreement: Fail below this agreement with the teacher, 0..1.
        overwrite: Take a folder of another recipe.
        monitor: Hears of progress.
    """
    recipe, loaded = chosen_recipe(
        {"name": teacher, **(teacher_options or {})},
        bits=bits,
        plan=plan,
        images=images,
        count=count,
        seed=seed,
        device=device,
        memory=memory,
        budget=budget,
        min_agreement=min_agreement,
        settings=settings,
    )
    return run(recipe, out, overwrite=overwrite, monitor=monitor, teacher=loaded)

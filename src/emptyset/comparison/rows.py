"""One row: a run folder in which images are made, a student is fitted and both are measured."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset import measurement
from emptyset.comparison.folder import ROWS, TIMINGS, write_text
from emptyset.comparison.judging import Judge
from emptyset.comparison.settings import REAL, Comparison, RowSection
from emptyset.comparison.timing import within_seconds
from emptyset.disk import disk_errors
from emptyset.inversion.budget import image_iterations, within_image_iterations
from emptyset.job.context import RunContext
from emptyset.job.image_stages import KnownImages
from emptyset.job.stages import Stages
from emptyset.kept_states import KEEP_EVERY
from emptyset.monitor import Monitor
from emptyset.recipe import Recipe, hash_of
from emptyset.registry import synthesizers
from emptyset.run_folder import STUDENT, RunFolder, Workplace
from emptyset.settings import checked_config
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.evaluate.clip_similarity import ClipEncoder

# Actual time and budget may differ by this share before the row says so.
TOLERANCE = 0.2


@dataclass(frozen=True)
class Surroundings:
    """What all rows share.

    Attributes:
        comparison: What is compared.
        out: Folder of the comparison.
        teacher: Loaded, on its device.
        monitor: Hears of progress.
        clip: For one more similarity, or None.
        keep_every: Least time between two kept states [seconds].
    """

    comparison: Comparison
    out: Path
    teacher: Teacher
    monitor: Monitor
    clip: "ClipEncoder | None" = None
    keep_every: float = KEEP_EVERY


@dataclass(frozen=True)
class Spending:
    """What a method may do within the budget.

    Attributes:
        settings: Of the method, complete.
        steps: Steps of a batch; None for a method without steps.
        image_iterations: What the images cost; None where the method does not say.
    """

    settings: dict[str, Any]
    steps: int | None
    image_iterations: int | None


def spending(at: Surroundings, row: RowSection) -> Spending:
    """The settings that spend the budget.

    Raises:
        RecipeError: If the method cannot meet it.
        UnsupportedModelError: If the teacher lacks what the method needs.
    """
    comparison = at.comparison
    entry, given = synthesizers.get(row.method), row.settings()
    config = checked_config(entry.config, given)
    budget = comparison.budget
    names = tuple(given)
    if budget.image_iterations is not None:
        chosen = within_image_iterations(
            entry, config, at.teacher, comparison.count, budget.image_iterations, given=names
        )
    elif budget.seconds is not None:
        chosen = _timed(at, row, config, budget.seconds)
    else:
        chosen = config
    return Spending(
        settings=given | _changed(config, chosen),
        steps=getattr(chosen, "steps", None),
        image_iterations=image_iterations(entry.make(chosen), at.teacher, comparison.count),
    )


def _timed(at: Surroundings, row: RowSection, config: Any, seconds: float) -> Any:
    """The settings that take so long here; what was measured once is not measured again."""
    comparison, entry = at.comparison, synthesizers.get(row.method)
    asked = hash_of(
        [row.model_dump(), comparison.count, seconds, at.teacher.weights_hash, comparison.device]
    )
    path = at.out / TIMINGS
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if known.get(row.name, {}).get("asked") == asked:
        return checked_config(entry.config, row.settings() | known[row.name]["settings"])
    at.monitor.note(f"{row.name}: finding out how many steps fit into {seconds:g} s here")
    chosen = within_seconds(
        entry,
        config,
        at.teacher,
        comparison.count,
        seconds,
        seed=comparison.seed,
        given=tuple(row.settings()),
    )
    known[row.name] = {"asked": asked, "settings": _changed(config, chosen)}
    with disk_errors(at.out):
        write_text(path, json.dumps(known, indent=2) + "\n")
    return chosen


def _changed(config: Any, chosen: Any) -> dict[str, Any]:
    """The settings that the budget changed."""
    values = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    return {name: value for name, value in values.items() if value != getattr(config, name)}


@contextmanager
def working_in(at: Surroundings, name: str, recipe: Recipe) -> Iterator[RunContext]:
    """The run folder of a row, claimed; stages with equal inputs are kept."""
    # The folder of the comparison was refused or granted before; what lies in it is ours.
    with RunFolder.claim(at.out / ROWS / name, recipe, overwrite=True) as folder:
        folder.begin(recipe)
        yield RunContext(folder, recipe, at.teacher, at.monitor, at.keep_every)


def measured(
    at: Surroundings, context: RunContext, fitted: KnownImages, judge: Judge
) -> dict[str, Any]:
    """Fit the student, and measure images and student; what is done is read back.

    Returns:
        ``images``, ``quality`` and ``student``: JSON data.
    """
    quality = _quality(at, context, fitted)
    stages = Stages(context, fitted, judge.judged)
    stages.student()
    student = _judged(context, stages, judge)
    seconds = context.folder.seconds()
    return {
        "images": {"count": len(fitted.images), "seconds": seconds.get("images")},
        "quality": quality,
        "student": student | {"seconds": seconds.get("student")},
    }


def _quality(at: Surroundings, context: RunContext, fitted: KnownImages) -> dict[str, Any]:
    size = min(len(fitted.images), measurement.batch_size_for(at.teacher.input.shape))
    name = None if at.clip is None else at.clip.name
    inputs = ["quality", fitted.identity, context.teacher_identity(), size, name]

    def work(place: Workplace) -> dict[str, Any]:
        from emptyset.evaluate.image_quality import image_quality

        found = image_quality(
            fitted.images, at.teacher, batch_size=size, clip=at.clip, monitor=place.monitor
        )
        return found.to_json()

    return context.run("quality", inputs, work)


def _judged(context: RunContext, stages: Stages, judge: Judge) -> dict[str, Any]:
    inputs = [
        "judged_student",
        context.file_digest("student", STUDENT),
        judge.judged.identity,
        context.teacher_identity(),
        judge.seed,
    ]

    def work(place: Workplace) -> dict[str, Any]:
        student = stages.ready_student()
        facts = {
            "float_inputs": list(student.float_inputs),
            "layers": len(student.layers()),
            "plan": student.plan,
            "bits": str(student.bits),
        }
        return judge.measure(student, place.monitor) | facts

    return context.run("judged_student", inputs, work)


def method_row(
    at: Surroundings, row: RowSection, spent: Spending, found: dict[str, Any]
) -> dict[str, Any]:
    """One row of the table, with what its images cost; JSON data."""
    images = found["images"]
    seconds = images["seconds"]
    images |= {
        "per_second": images["count"] / seconds if seconds else None,
        "steps": spent.steps,
        "image_iterations": spent.image_iterations,
    }
    return {
        "name": row.name,
        "method": row.method,
        "settings": spent.settings,
        "folder": f"{ROWS}/{row.name}",
        **found,
        "remark": _remark(at.comparison, spent, seconds),
    }


def _remark(comparison: Comparison, spent: Spending, seconds: float | None) -> str | None:
    """What is to be said about the budget."""
    budget = comparison.budget
    if spent.steps is None and not budget.own_settings:
        return "takes no steps, so it spends none of the budget"
    if budget.seconds is not None and seconds is not None:
        off = seconds / budget.seconds
        if abs(off - 1) > TOLERANCE:
            return f"took {seconds:.1f} s of {budget.seconds:g} s"
    return None


def real_row(found: dict[str, Any]) -> dict[str, Any]:
    """The row of real images: they cost nothing here."""
    found["images"] |= {"seconds": None, "per_second": None, "steps": None}
    found["images"]["image_iterations"] = None
    return {
        "name": REAL,
        "method": None,
        "settings": {},
        "folder": f"{ROWS}/{REAL}",
        **found,
        "remark": None,
    }

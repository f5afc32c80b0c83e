"""What comes before a student's steps are learnt beside a source: the source learns alone, and then
makes the images that the first ranges come from.
"""

import torch

from emptyset.errors import CollapseError, ImagesError, RecipeError
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import LiveSource
from emptyset.monitor import Monitor, SilentMonitor, State
from emptyset.refiners.course import GENERATOR, Course
from emptyset.refiners.student_losses import NO_LABELS

KEY = "distill.warm_up"
SHOWN = "distill"
CALIBRATION_IMAGES = 256


def require_fit(source: LiveSource, course: Course) -> None:
    """Refuse a course that cannot be learnt beside this source, before that has learnt anything.

    Raises:
        ImagesError: If labels are learnt from that the source does not have.
        RecipeError: If ranges are to come from a generator beside a source.
    """
    if not source.labelled and course.cross_entropy > 0:
        raise ImagesError(NO_LABELS)
    if course.ranges_from == GENERATOR:
        raise RecipeError(
            "distill: ranges_from 'gdfq' is for stored images; beside a source its own images give "
            "the ranges. Leave ranges_from at 'images'."
        )


class NotesAlone(SilentMonitor):
    """For a small part of a whole: its progress is not told, and nothing of it kept."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def note(self, message: str) -> None:
        """Pass it on."""
        self._monitor.note(message)


def note_doubts(
    source: LiveSource | None,
    course: Course,
    monitor: Monitor,
    *,
    judged: bool,
    warm_up: float | None,
) -> None:
    """Say of labels that are not learnt from, of a best student that cannot be told, and of a
    warm-up of another length.

    Args:
        source: Beside the student, if any.
        course: What it is to learn.
        monitor: Hears of it.
        judged: Whether the caller judges the student.
        warm_up: Share of the steps that was asked for; None: the preset's.
    """
    if source is not None:
        _note_warm_up(warm_up, course, monitor)
    # Of the others' losses without a cross entropy, AIT's and AdaSG's, that is the point.
    unused = course.cross_entropy == 0 and course.logit_distance > 0
    if source is not None and source.labelled and unused:
        monitor.note(
            "distill: this source's images have labels, and the student does not learn from them: "
            "preset 'zaq' is for images without. Qimera on ZAQ has cross_entropy 0.1."
        )
    if course.keep == "best" and not judged and (source is None or course.held_out == 0):
        monitor.note(
            "distill: keep is 'best', and there are no images to tell which student that is, so "
            "the last one is the result. Beside a source set held_out to 2 or more; on stored "
            "images Distill.refine takes a function that judges."
        )


def _note_warm_up(asked: float | None, course: Course, monitor: Monitor) -> None:
    if asked is None or course.warm_up == round(course.steps * asked):
        return
    why = (
        "the student's ranges are tracked in so many"
        if course.range_steps
        else "a source that learns from the student cannot learn before it"
        if course.warm_up == 0
        else "the student needs a batch to learn from"
    )
    monitor.note(
        f"distill: warm_up {asked:g} of {course.steps} steps would be "
        f"{round(course.steps * asked)}; it is {course.warm_up}, since {why}."
    )


def warmed_up(
    source: LiveSource, course: Course, *, seed: int, monitor: Monitor, draw: bool
) -> ImageSet | None:
    """Let the source learn through the warm-up's batches.

    Args:
        source: Fresh.
        course: Tells how many batches there are.
        seed: Of the images that are drawn.
        monitor: Hears of progress; keeps the source, so that a killed run goes on.
        draw: Whether the ranges are to be set from its images.

    Returns:
        Images that it makes now, or None.

    Raises:
        CollapseError: If a loss of the source is not finite.
    """
    source.begin(course.steps, course.batch_size, precision=course.precision, monitor=monitor)
    kept, number = monitor.restore(KEY), 0
    if kept is not None:
        source.load_state({k[7:]: v for k, v in kept.items() if k.startswith("source|")})
        number = int(kept["done"])
    while number < course.warm_up:
        source.next_batch(course.batch_size)
        number += 1
        monitor.advance(SHOWN, number, course.steps)
        if number % course.epoch == 0 or number == course.warm_up:
            _refuse_fault(source, number)
        monitor.keep(KEY, lambda done=number: _state(source, done), final=number == course.warm_up)  # type: ignore[misc]
    return source.drawn(CALIBRATION_IMAGES, seed=seed) if draw else None


def _refuse_fault(source: LiveSource, number: int) -> None:
    fault = source.fault()
    if fault is not None:
        raise CollapseError(
            f"distill: the source diverged: its loss term '{fault.term}' is NaN or infinite (seen "
            f"after batch {number} of the warm-up). The student is as it was. Lower the source's "
            "learning_rate."
        )


def _state(source: LiveSource, done: int) -> State:
    state = {f"source|{name}": value for name, value in source.state().items()}
    return {**state, "done": torch.tensor(done)}

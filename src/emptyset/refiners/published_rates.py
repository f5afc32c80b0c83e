"""Where published learning rates mean what they say, and where they do not."""

from emptyset.graph.student import Student
from emptyset.monitor import Monitor
from emptyset.refiners.course import AVERAGE, FEWEST_COMPOUNDING, Course


def note_folded_rates(student: Student, preset: str, monitor: Monitor) -> None:
    """Say that rates were published for another student, where BatchNorm is folded into weights.

    Args:
        student: Prepared.
        preset: Whose rates they are.
        monitor: Hears of it.
    """
    if student.batch_norm == "fold" and student.teacher.stored_batch_norms():
        monitor.note(
            f"distill: preset '{preset}' has learning rates for a student whose BatchNorm is a "
            "layer of its own. This one's is folded into the weights, so their channels differ in "
            "size a thousandfold and one rate fits few of them. Prepare it with batch_norm "
            "'frozen' (plans every_layer and edges_8bit), or use preset 'learned'."
        )


def note_compounding_ranges(course: Course, monitor: Monitor) -> None:
    """Say that the released average of ranges has too few batches to come down.

    Args:
        course: Of a published preset.
        monitor: Hears of it.
    """
    few = 1 < course.range_steps < FEWEST_COMPOUNDING
    if course.legacy and course.ranges == AVERAGE and few:
        monitor.note(
            f"distill: {course.range_steps} batches set the activation ranges, and after so few "
            "legacy's average is many times too large: the student will round nearly everything to "
            f"0. Give it a warm-up of at least {FEWEST_COMPOUNDING} batches (warm_up, steps), or "
            "leave legacy out."
        )

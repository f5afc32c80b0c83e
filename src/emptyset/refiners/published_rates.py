"""Where published learning rates mean what they say, and where they do not."""

from emptyset.graph.student import Student
from emptyset.monitor import Monitor


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

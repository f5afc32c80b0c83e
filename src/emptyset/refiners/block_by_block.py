"""What AdaRound, BRECQ, QDrop and Genie-M do alike: calibrate if need be, then learn the blocks."""

from collections.abc import Sequence

from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import Monitor
from emptyset.reconstruction.chain import reconstruct
from emptyset.reconstruction.config import Course
from emptyset.registry import refiners


def block_by_block(
    student: Student, images: Images, courses: Sequence[Course], *, seed: int, monitor: Monitor
) -> None:
    """Learn every block of a student, in place; originals are kept for float mode.

    Args:
        student: A prepared student; calibrated here where it is not.
        images: A stored set; every block looks at all of them.
        courses: What is learnt, one walk down the blocks after the other.
        seed: Of everything random.
        monitor: Hears of progress; keeps what was learnt, so that a killed run goes on.

    Raises:
        ImagesError: If there are no images, or they are no stored set.
        CollapseError: If a block diverged; it then has its best state.
    """
    if isinstance(images, Images) and not all(
        bool(q.calibrated) for q in student.quantizers.values()
    ):
        entry = refiners.get("calibrate")
        entry.make(entry.config()).refine(student, images, seed=seed, monitor=monitor)
    for course in courses:
        reconstruct(student, images, course, seed=seed, monitor=monitor)

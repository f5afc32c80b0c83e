"""The shell of AdaRound, BRECQ, QDrop and Genie-M: calibrate if need be, then learn the blocks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.reconstruction.chain import reconstruct
from emptyset.reconstruction.config import Course
from emptyset.registry import refiners


class BlockByBlock(ABC):
    """A refiner that consists of what is learnt in each block (or layer)."""

    @abstractmethod
    def courses(self, student: Student) -> Sequence[Course]:
        """What is learnt, one walk down the blocks after the other.

        Args:
            student: Prepared.
        """

    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Learn every block of ``student``, in place; originals are kept for float mode.

        What became of each block is appended to ``student.records``, one entry per walk down the
        blocks: ``{"refiner": "brecq", "course": "brecq.weights", "blocks": [...]}``, of each block
        ``{"block", "start", "final", "kept", "steps"}``, errors in output units squared.

        Args:
            student: A prepared student; calibrated here where it is not.
            images: A stored set; every block looks at all of them.
            seed: Of everything random: the order of images, what is dropped or left out.
            monitor: Hears of progress; keeps what was learnt, so that a killed run goes on.

        Raises:
            ImagesError: If there are no images, or they are no stored set.
            CollapseError: If a block diverged; it then has its best state.
        """
        if isinstance(images, Images) and student.without_ranges():
            entry = refiners.get("calibrate")
            entry.make(entry.config()).refine(student, images, seed=seed, monitor=monitor)
        for course in self.courses(student):
            told = reconstruct(student, images, course, seed=seed, monitor=monitor)
            refiner, blocks = course.name.partition(".")[0], [one.record() for one in told]
            student.records.append({"refiner": refiner, "course": course.name, "blocks": blocks})

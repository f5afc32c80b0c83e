"""Activation ranges as IntraQ and HAST released them: from a generator, not from the images.

Source: the released code of IntraQ, Zhong et al. 2022, arXiv:2111.09136: in the first 4 of 151
    epochs a fresh generator of GDFQ learns in batches of 16, and the student only looks at its
    images.
"""

from dataclasses import replace

from emptyset.graph.student import Student
from emptyset.monitor import Monitor, PrefixedMonitor
from emptyset.refiners.course import GENERATOR, IMAGES, Course
from emptyset.refiners.training import Training
from emptyset.registry import sources

BATCH = 16


def follow_generator(student: Student, course: Course, *, seed: int, monitor: Monitor) -> None:
    """Set the activation ranges through the warm-up of ``course``; weights stay as they are.

    Args:
        student: Prepared, with or without ranges.
        course: Of the training that follows; its warm-up is as long as this.
        seed: Of the generator.
        monitor: Hears of progress; keeps generator and ranges, so that a killed run goes on.

    Raises:
        UnsupportedModelError: If the teacher lacks what GDFQ needs.
        CollapseError: If the generator diverged.
    """
    entry = sources.get(GENERATOR)
    # Its rate falls after 100 epochs, which is long after these few.
    source = entry.make(entry.config(milestones=())).source(student.teacher, seed=seed)
    looking = replace(
        course,
        ranges_from=IMAGES,
        steps=course.warm_up,
        batch_size=BATCH,
        augmentation="none",
        feature_attention=0.0,
        relations=0.0,
        inundation="none",
        held_out=0,
    )
    Training(student, source, looking, seed).run(PrefixedMonitor(monitor, "ranges"))

"""A small source and a short training beside it."""

from collections.abc import Callable
from typing import Any

from emptyset.graph.student import Student, prepare
from emptyset.monitor import SILENT
from emptyset.quantizers.bits import Bits
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher

BITS = Bits.parse("w4a4")
PUBLISHED = {"plan": "every_layer", "batch_norm": "frozen"}
STEPS, BATCH = 12, 6


def make(name: str, teacher: Teacher, **settings: Any) -> Any:
    entry = sources.get(name)
    smallest = vars(entry.config.smallest()) if settings else {}
    config = entry.config(**smallest | settings) if settings else entry.config.smallest()
    return entry.make(config).source(teacher, seed=3)


def taught(
    teacher: Teacher,
    source: Any,
    *,
    plan: str = "every_layer",
    batch_norm: str = "fold",
    monitor: Any = SILENT,
    evaluate: Callable[[Student], float] | None = None,
    student: Student | None = None,
    **settings: Any,
) -> Student:
    student = student or prepare(teacher, BITS, plan=plan, batch_norm=batch_norm)
    config = {"steps": STEPS, "batch_size": BATCH, "epoch": 3, "held_out": 8, **settings}
    refiner = Distill(DistillConfig(**config))
    refiner.refine(student, source, seed=7, monitor=monitor, evaluate=evaluate)
    return student

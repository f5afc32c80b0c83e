"""What all stages of a run share: the folder, the recipe, and who is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emptyset.kept_states import KEEP_EVERY
from emptyset.monitor import Monitor
from emptyset.recipe import Recipe
from emptyset.run_folder import RunFolder, Workplace
from emptyset.teachers.teacher import Teacher


@dataclass
class RunContext:
    """A run at work.

    Attributes:
        folder: The run folder, claimed.
        recipe: What is run.
        teacher: Loaded, on the recipe's device.
        monitor: Hears of progress.
        keep_every: Least time between two kept states [seconds].
        done: Names of the stages that were run now.
    """

    folder: RunFolder
    recipe: Recipe
    teacher: Teacher
    monitor: Monitor
    keep_every: float = KEEP_EVERY
    done: list[str] = field(default_factory=list)

    def run(
        self, stage: str, inputs: Any, work: Callable[[Workplace], dict[str, Any]]
    ) -> dict[str, Any]:
        """The stage's result, from the folder or from running it now."""
        record, now = self.folder.run(stage, inputs, work, self.monitor, keep_every=self.keep_every)
        if now:
            self.done.append(stage)
        return record.result

    def file_digest(self, stage: str, name: str) -> str:
        """Digest of a file that a finished stage wrote."""
        record = self.folder.record(stage)
        assert record is not None
        return record.files[name]

    def teacher_identity(self) -> list[Any]:
        """What tells this teacher from every other."""
        teacher = self.teacher
        spec = teacher.input
        return [
            teacher.name,
            teacher.weights_hash,
            list(spec.shape),
            list(spec.mean),
            list(spec.std),
            teacher.example(1).device.type,
        ]

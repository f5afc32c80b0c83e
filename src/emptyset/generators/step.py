"""The arithmetic of one lesson: labels and noise to images, logits and loss terms."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emptyset.generators.generator import Generator
from emptyset.generators.judged import Judged
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.watched_teacher import Watched, WatchedTeacher
from emptyset.inversion.compilation import (
    Execution,
    compiled,
    compiler_found,
    has_fast_bfloat16,
    worth_compiling,
)
from emptyset.monitor import Monitor, State


@dataclass(frozen=True)
class LessonExecution(Execution):
    """How generator and teacher are run."""

    def described(self) -> dict[str, object]:
        """For the record (JSON data)."""
        return {"compiled": self.compiled, "dtype": str(self.dtype).removeprefix("torch.")}


class GeneratorStep:
    """Runs generator and teacher, compiled or not.

    Attributes:
        execution: How.
    """

    def __init__(
        self, method: GeneratorMethod, generator: Generator, watched: WatchedTeacher
    ) -> None:
        self._method, self._generator, self._teacher = method, generator, watched
        self.execution = LessonExecution(False, self._dtype("auto"))
        self._weights = torch.tensor([t.weight for t in method.terms], device=watched.device)
        self._monitor: Monitor | None = None
        self._whole, self._tried = self._everything, False

    def _dtype(self, precision: str) -> torch.dtype:
        """Of products, for ``float32``, ``bfloat16`` or ``auto``."""
        fast = precision == "auto" and has_fast_bfloat16(self._teacher.device)
        return torch.bfloat16 if fast or precision == "bfloat16" else torch.float32

    def decide(self, lessons: int, batch_size: int, precision: str, monitor: Monitor) -> None:
        """Precision of products; compiled where that saves more time than compiling takes."""
        self._monitor = monitor
        elements, layers = self._teacher.work_per_image()
        wanted = not self._method.needs_student and worth_compiling(
            self._teacher.device,
            elements=elements * batch_size,
            layers=layers,
            steps=lessons,
            threads=torch.get_num_threads(),
        )
        if wanted and not compiler_found(self._teacher.device):
            wanted = False
            monitor.note(
                f"{self._method.name}: no C++ compiler found, so the generator's step is not "
                "compiled and takes longer. Install g++ or clang to change that."
            )
        self._take(LessonExecution(wanted, self._dtype(precision)))

    def restore(self, state: State) -> None:
        """Run as the killed run did: compiled and eager code round differently."""
        kept = Execution.from_state(state)
        self._take(LessonExecution(kept.compiled, kept.dtype))

    def _take(self, execution: LessonExecution) -> None:
        self.execution, self._tried = execution, False
        self._whole = compiled(self._everything) if execution.compiled else self._everything

    def run(
        self, drawn: Mapping[str, Tensor], targets: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images [teacher's units], the teacher's logits and the loss terms ``(T,)``."""
        if self.execution.compiled and not self._tried:
            self._try(drawn, targets)
        return self._whole(drawn, targets)

    def _try(self, drawn: Mapping[str, Tensor], targets: Tensor | None) -> None:
        """Compile on a step that is thrown away; where that fails, go on without."""
        parameters = [p for p in self._generator.parameters() if p.requires_grad]
        try:
            with self._generator.statistics_kept():
                _, _, terms = self._whole(drawn, targets)
                torch.autograd.grad(self.loss(terms), parameters, allow_unused=True)
        # Whatever a compiler may raise. An error of the method itself comes again without it.
        except Exception as error:
            self._take(replace(self.execution, compiled=False))
            if self._monitor is not None:
                self._monitor.note(
                    f"{self._method.name}: torch.compile cannot compile the generator's step "
                    f"({type(error).__name__}), so it runs as it is and takes longer."
                )
        self._tried = True

    def loss(self, terms: Tensor) -> Tensor:
        """The weighted sum of the terms."""
        return (terms * self._weights).sum()

    def judge(self, judged: Judged) -> Tensor:
        """The loss terms ``(T,)``, unweighted."""
        return torch.stack([term.of(judged) for term in self._method.terms])

    def render(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Images ``(N, C, H, W)`` [teacher's normalised units], float32."""
        with torch.autocast(self._teacher.device.type, torch.bfloat16, enabled=self._half):
            images = self._generator(drawn)
        return self._teacher.units.to_teacher(images)

    def watch(self, images: Tensor) -> Watched:
        """What the teacher says of images."""
        return self._teacher.look(images, half=self._half)

    @property
    def _half(self) -> bool:
        return self.execution.dtype == torch.bfloat16

    def _everything(
        self, drawn: Mapping[str, Tensor], targets: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        images = self.render(drawn)
        watched = self.watch(images)
        judged = Judged(images, targets, watched.logits, watched.layers, watched.penultimate)
        return images, watched.logits, self.judge(judged)

"""The best student of a training beside the last one: kept, compared, recorded.

No real image is needed: what is compared is how often student and teacher name the same class, on
images that the generator makes at that moment and the student never learns from. The best one so
far is judged again on the same images, so that a generator that changes favours neither.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emptyset.graph.originals import put
from emptyset.graph.student import Student
from emptyset.images.image_source import LiveSource
from emptyset.monitor import State
from emptyset.refiners.training_parts import OwnNetwork

Evaluate = Callable[[Student], float]
"""How good a student is; larger is better."""

KEPT = ("last", "best")
BATCH = 128


def snapshot(student: Student, parameters: Mapping[str, Tensor]) -> State:
    """What training changes: parameters and grids, copied."""
    state = {f"parameter|{path}": p.detach().clone() for path, p in parameters.items()}
    for name, quantizer in student.quantizers.items():
        state[f"scale|{name}"] = quantizer.scale.detach().clone()
        state[f"zero_point|{name}"] = quantizer.zero_point.detach().clone()
    return state


def put_back(student: Student, parameters: Mapping[str, Tensor], state: State) -> None:
    """Take over what ``snapshot`` gave."""
    put(parameters, {path: state[f"parameter|{path}"] for path in parameters})
    for name, quantizer in student.quantizers.items():
        quantizer.set_parameters(state[f"scale|{name}"], state[f"zero_point|{name}"])


class BestStudent:
    """Judges the student after every epoch, and keeps the best.

    Args:
        student: In training.
        parameters: What training changes, by path.
        source: Makes the images to judge on, where it can.
        held_out: How many; 0: none are judged on.
        seed: Of these images.
        evaluate: Judges instead.
    """

    def __init__(
        self,
        student: Student,
        parameters: Mapping[str, Tensor],
        source: LiveSource | None,
        *,
        held_out: int,
        seed: int,
        evaluate: Evaluate | None,
    ) -> None:
        self._student, self._parameters, self._source = student, parameters, source
        self._held_out, self._seed, self._evaluate = held_out, seed, evaluate
        self.best: State | None = None
        # Update and score of every look; which of them is the best.
        self._looks: list[tuple[int, float]] = []
        self._best_look = 0
        asked = self.judges and evaluate is None
        self._teacher = OwnNetwork(student.teacher) if asked else None

    @property
    def judges(self) -> bool:
        """Whether there is anything to judge by."""
        return self._evaluate is not None or (self._source is not None and self._held_out > 0)

    def look(self, update: int) -> None:
        """Judge the student as it is after so many updates."""
        if not self.judges:
            return
        score, other = self._scores()
        if self.best is None or score >= other:
            self.best = snapshot(self._student, self._parameters)
            self._best_look = len(self._looks)
        self._looks.append((update, score))

    def _scores(self) -> tuple[float, float]:
        """Of the student as it is, and of the best so far."""
        if self._evaluate is not None:
            with self._as_exported(None):
                score = float(self._evaluate(self._student))
            return score, self._looks[self._best_look][1] if self._looks else score
        assert self._source is not None
        images = self._source.drawn(self._held_out, seed=self._seed)
        with self._as_exported(None):
            score = self._agreement(images.images)
        if self.best is None:
            return score, score
        with self._as_exported(self.best):
            return score, self._agreement(images.images)

    @contextmanager
    def _as_exported(self, state: State | None) -> Iterator[None]:
        """Inside, the student computes what its file would, as it is or as it was."""
        quantizers = self._student.quantizers
        learners = {name: quantizer.trained for name, quantizer in quantizers.items()}
        now = None if state is None else snapshot(self._student, self._parameters)
        try:
            for quantizer in quantizers.values():
                quantizer.trained = None
            if state is not None:
                put_back(self._student, self._parameters, state)
            with torch.no_grad():
                yield
        finally:
            if now is not None:
                put_back(self._student, self._parameters, now)
            for name, quantizer in quantizers.items():
                quantizer.trained = learners[name]

    def _agreement(self, images_NCHW: Tensor) -> float:
        """Share of images for which student and teacher name the same class."""
        assert self._teacher is not None
        same, device = 0, self._student.device
        for batch in torch.split(images_NCHW, BATCH):
            shown = batch.to(device)
            theirs = self._teacher(shown)[0].argmax(1)
            same += int((self._student(shown).argmax(1) == theirs).sum())
        return same / len(images_NCHW)

    def record(self, kept: str) -> dict[str, Any] | None:
        """What was found (JSON data), or None where nothing was judged.

        Args:
            kept: Which student is the result, ``last`` or ``best``.
        """
        if not self._looks:
            return None
        looks = [{"update": update, "score": score} for update, score in self._looks]
        by = (
            "the given evaluation"
            if self._evaluate is not None
            else f"agreement with the teacher on {self._held_out} images of the generator"
        )
        return {
            "judged_by": by,
            "kept": kept,
            "last": looks[-1],
            "best": looks[self._best_look],
            "epochs": looks,
        }

    def state(self) -> State:
        """What a killed run needs to go on."""
        if self.best is None:
            return {}
        looks = torch.tensor(self._looks, dtype=torch.double)
        numbers = {"looks": looks, "best_look": torch.tensor(self._best_look)}
        return numbers | {f"best|{name}": value for name, value in self.best.items()}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        if not state:
            return
        self._looks = [(int(update), float(score)) for update, score in state["looks"].tolist()]
        self._best_look = int(state["best_look"])
        device = self._student.device
        self.best = {
            name.removeprefix("best|"): value.to(device)
            for name, value in state.items()
            if name.startswith("best|")
        }

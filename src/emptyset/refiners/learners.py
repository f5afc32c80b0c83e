"""How every grid of a student moves while it learns: one learner per quantizer, by course."""

import torch

from emptyset.graph.operators import attribute
from emptyset.graph.student import Student
from emptyset.monitor import State
from emptyset.quantizers.learned_step import (
    ExtremeRange,
    FollowedRange,
    LearnedStep,
    TrackedRange,
)
from emptyset.reconstruction.units import weight_paths
from emptyset.refiners.course import EXTREMES, Course

Learner = LearnedStep | FollowedRange | TrackedRange | ExtremeRange


class Learners:
    """The learners of all quantizers, put in place."""

    def __init__(self, student: Student, course: Course) -> None:
        self._student = student
        self._learners: dict[str, Learner] = {}
        paths = weight_paths(student)
        for name, quantizer in student.quantizers.items():
            learner: Learner
            if course.learned:
                learner = LearnedStep(quantizer, course.mask)
            elif quantizer.axis is not None:
                learner = FollowedRange(
                    quantizer, attribute(student.program, paths.get(name, name))
                )
            elif course.ranges == EXTREMES:
                learner = ExtremeRange(quantizer)
            else:
                learner = TrackedRange(quantizer, legacy=course.legacy)
            self._learners[name] = quantizer.trained = learner

    def steps(self) -> list[torch.Tensor]:
        """What learned steps are learnt through."""
        return [x.parameter for x in self._learners.values() if isinstance(x, LearnedStep)]

    def track(self, tracking: bool) -> None:
        """Whether activation ranges follow what passes through from now on."""
        for learner in self._learners.values():
            if isinstance(learner, TrackedRange | ExtremeRange):
                learner.tracking = tracking

    def publish(self) -> None:
        """Give the quantizers the grids that follow from weights and steps as they are now."""
        for learner in self._learners.values():
            if isinstance(learner, LearnedStep | FollowedRange):
                learner.publish()

    def state(self) -> State:
        """What a killed run needs to go on."""
        state: State = {}
        for name, learner in self._learners.items():
            if isinstance(learner, LearnedStep):
                state[f"step|{name}"] = learner.parameter.detach()
            elif not isinstance(learner, FollowedRange):
                state |= {f"range|{name}|{key}": value for key, value in learner.state().items()}
        return state

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave; weights are in place already."""
        device = self._student.device
        for name, learner in self._learners.items():
            if isinstance(learner, LearnedStep):
                with torch.no_grad():
                    learner.parameter.copy_(state[f"step|{name}"])
            elif not isinstance(learner, FollowedRange):
                prefix = f"range|{name}|"
                seen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                learner.load_state({key: value.to(device) for key, value in seen.items()})
            learner.publish()

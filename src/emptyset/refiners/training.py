"""One training of a student: what is updated, in which order, and how it goes on after a kill."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emptyset.errors import CollapseError, ImagesError
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.operators import attribute
from emptyset.graph.originals import put, trainable
from emptyset.graph.student import Student
from emptyset.images.image_set import Batch
from emptyset.images.image_source import Disagreement, ImageSource
from emptyset.losses.distillation import distillation_loss
from emptyset.losses.feature_attention import feature_attention_loss
from emptyset.monitor import Monitor, State
from emptyset.quantizers.learned_step import FollowedRange, LearnedStep, TrackedRange
from emptyset.refiners.training_parts import (
    Pair,
    augmented,
    mixed_batch,
    pair_of,
    pays_to_compile,
)

KEY = "distill"
# Of IntraQ's 151 epochs: ranges are tracked in 4, the learning rate falls after these.
EPOCHS, RANGE_EPOCHS, MILESTONES = 151, 4, (20, 40, 60)
Learner = LearnedStep | FollowedRange | TrackedRange


@dataclass(frozen=True)
class Course:
    """Settings with every blank filled in; see the refiner `distill`.

    Attributes:
        learned: Steps are learnt with Adam; otherwise ranges are followed and tracked, with SGD.
        range_steps: How many of the steps only track ranges.
    """

    learned: bool
    steps: int
    range_steps: int
    batch_size: int
    learning_rate: float
    step_learning_rate: float
    temperature: float
    distillation: float
    kd_reduction: str
    cross_entropy: float
    feature_attention: float
    perturbation: float
    mask: str
    augmentation: str
    flip: float
    mixing: str
    weight_decay: float
    legacy: bool

    def share_of_rate(self, number: int) -> float:
        """Factor of the learning rates in update ``number``, counted from 0."""
        if self.learned:
            return 0.5 * (1 + math.cos(math.pi * number / self.steps))
        passed = [m for m in MILESTONES if number * EPOCHS >= m * self.steps]
        return float(0.1 ** len(passed))


class Training:
    """One student while it learns."""

    def __init__(self, student: Student, source: ImageSource, course: Course, seed: int) -> None:
        self._student, self._source, self._seed = student, source, seed
        self._course = course
        self._pair: Pair = pair_of(student, tapped=course.feature_attention > 0)
        # What the weights learn with; ranges are tracked without compiling.
        self._learning_pair = self._pair
        self._parameters = trainable(student.program)
        self._learners: dict[str, Learner] = {}
        self._compiled = False
        self._classes = 0
        if course.mixing != "none":
            with torch.no_grad():
                self._classes = self._pair.teacher(student.teacher.example(1))[0].shape[1]

    def run(self, monitor: Monitor) -> None:
        """All updates, or those that are left after a kill."""
        total = self._course.steps
        with self._learning():
            kept = monitor.restore(KEY)
            if self._compiles(kept, monitor):
                self._learning_pair = self._pair.compiled()
            number = self._restore(kept)
            while number < total:
                self._update(number)
                number += 1
                monitor.advance(KEY, number, total)
                monitor.keep(KEY, lambda done=number: self._state(done), final=number == total)  # type: ignore[misc]

    def _compiles(self, kept: State | None, monitor: Monitor) -> bool:
        """Decided once: compiled and eager code round differently, a resumed run must not."""
        course = self._course
        if kept is not None:
            self._compiled = bool(kept["compiled"])
        else:
            self._compiled = pays_to_compile(
                self._student,
                batch_size=course.batch_size,
                updates=course.steps - course.range_steps,
                monitor=monitor,
            )
        return self._compiled

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Inside, parameters take gradients; a fault leaves the student as it was."""
        student = self._student
        before = {path: p.detach().clone() for path, p in self._parameters.items()}
        ranges = {name: q.state_dict() for name, q in student.quantizers.items()}
        ranges = {n: {k: v.clone() for k, v in state.items()} for n, state in ranges.items()}
        try:
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            for name, quantizer in student.quantizers.items():
                self._learners[name] = quantizer.trained = self._learner(name)
            self._optimizer = self._new_optimizer()
            yield
            self._check_finite()
        except BaseException:
            put(self._parameters, before)
            for name, quantizer in student.quantizers.items():
                quantizer.load_state_dict(ranges[name])
            raise
        finally:
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
            for quantizer in student.quantizers.values():
                quantizer.trained = None
        student.originals = before | student.originals
        keep_biases_in_int32(student)

    def _learner(self, name: str) -> Learner:
        quantizer = self._student.quantizers[name]
        if self._course.learned:
            return LearnedStep(quantizer, self._course.mask)
        if quantizer.axis is None:
            return TrackedRange(quantizer, legacy=self._course.legacy)
        return FollowedRange(quantizer, attribute(self._student.program, name))

    def _new_optimizer(self) -> torch.optim.Optimizer:
        course = self._course
        weights = {
            "params": list(self._parameters.values()),
            "start": course.learning_rate,
            "weight_decay": course.weight_decay,
        }
        if not course.learned:
            return torch.optim.SGD([weights], lr=course.learning_rate, momentum=0.9, nesterov=True)
        steps = {
            "params": [x.parameter for x in self._learners.values() if isinstance(x, LearnedStep)],
            "start": course.step_learning_rate,
            "weight_decay": 0.0,
        }
        return torch.optim.Adam([weights, steps], lr=course.learning_rate)

    def _update(self, number: int) -> None:
        """One batch: ranges move first, then weights."""
        course, device = self._course, self._student.device
        batch = self._source.next_batch(self._course.batch_size)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        images = augmented(batch.images.to(device), course.augmentation, course.flip, generator)
        batch = Batch(images, None if batch.targets is None else batch.targets.to(device))
        if course.mixing != "none":
            batch = mixed_batch(batch, course.mixing, self._classes, generator)
        tracking = number < course.range_steps
        for learner in self._learners.values():
            if isinstance(learner, TrackedRange):
                learner.tracking = tracking
        if tracking:
            with torch.no_grad():
                ours, theirs = self._pair.student(images)[0], self._pair.teacher(images)[0]
        else:
            ours, theirs = self._learn(batch, course.share_of_rate(number))
        self._source.learn_from(Disagreement(batch, theirs.detach(), ours.detach()))

    def _learn(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        """One optimizer step; gives the logits of student and teacher."""
        weights = [p for group in self._optimizer.param_groups for p in group["params"]]
        size = self._course.perturbation
        images = batch.images.detach().requires_grad_(size > 0)
        loss, ours, theirs = self._loss(images, batch.targets)
        wanted = [*weights, images] if size > 0 else weights
        gradients = list(torch.autograd.grad(loss, wanted, allow_unused=True))
        if size > 0:
            direction = gradients.pop()
            assert direction is not None
            harder = (images + size * direction.sign()).detach()
            again = self._loss(harder, batch.targets)[0]
            more = torch.autograd.grad(again, weights, allow_unused=True)
            gradients = [
                None if a is None or b is None else a + b
                for a, b in zip(gradients, more, strict=True)
            ]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = group["start"] * share
        self._optimizer.step()
        for learner in self._learners.values():
            if not isinstance(learner, TrackedRange):
                learner.publish()
        return ours, theirs

    def _loss(self, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and the logits of student and teacher."""
        course = self._course
        # Gradients pass through the teacher only to the images (the perturbation), never to it.
        with torch.set_grad_enabled(images.requires_grad):
            theirs, expected = self._learning_pair.teacher(images)
        ours, found = self._learning_pair.student(images)
        loss = course.distillation * distillation_loss(
            ours, theirs, temperature=course.temperature, kd_reduction=course.kd_reduction
        )
        if course.cross_entropy > 0:
            if targets is None:
                raise ImagesError(
                    "distill: the cross entropy needs labels, and these images have none. Set "
                    "cross_entropy to 0, or use images that a method made for labels."
                )
            loss = loss + course.cross_entropy * F.cross_entropy(ours, targets)
        if course.feature_attention > 0:
            loss = loss + course.feature_attention * feature_attention_loss(found, expected)
        return loss, ours, theirs

    def _check_finite(self) -> None:
        scales = [quantizer.scale for quantizer in self._student.quantizers.values()]
        for values in (*self._parameters.values(), *scales):
            if not bool(torch.isfinite(values).all()):
                raise CollapseError(
                    "distill: training diverged (NaN or infinity), so the student was left as it "
                    f"was. Lower learning_rate (it was {self._course.learning_rate:g})."
                )

    def _state(self, done: int) -> State:
        state = {f"parameter|{path}": p.detach() for path, p in self._parameters.items()}
        for name, learner in self._learners.items():
            if isinstance(learner, LearnedStep):
                state[f"step|{name}"] = learner.parameter.detach()
            elif isinstance(learner, TrackedRange):
                seen = learner.estimator.state()
                state |= {f"range|{name}|{key}": value for key, value in seen.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer|{index}|{key}": v for key, v in values.items() if v is not None}
        state |= {f"source|{key}": value for key, value in self._source.state().items()}
        return {**state, "done": torch.tensor(done), "compiled": torch.tensor(self._compiled)}

    def _restore(self, state: State | None) -> int:
        """Take over what a killed run had learnt; gives how many updates that were."""
        if state is None:
            return 0
        put(self._parameters, _part(state, "parameter|"))
        for name, learner in self._learners.items():
            if isinstance(learner, LearnedStep):
                put({name: learner.parameter}, {name: state[f"step|{name}"]})
            elif isinstance(learner, TrackedRange):
                learner.estimator.load_state(_part(state, f"range|{name}|"))
            learner.publish()
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(state, "optimizer|").items():
            index, key = name.split("|")
            kept.setdefault(int(index), {})[key] = value.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self._source.load_state(_part(state, "source|"))
        return int(state["done"])


def _part(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

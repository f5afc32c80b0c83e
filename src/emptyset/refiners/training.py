"""One training of a student: what is updated, in which order, and how it goes on after a kill."""

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from emptyset.errors import CollapseError, ImagesError, NotCalibratedError
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.moving_statistics import statistics
from emptyset.graph.originals import put, trainable
from emptyset.graph.student import Student
from emptyset.images.image_set import Batch
from emptyset.images.image_source import (
    Disagreement,
    ImageSource,
    Lesson,
    LiveSource,
    StoredImages,
)
from emptyset.images.targets import require_targets
from emptyset.monitor import Monitor, State
from emptyset.refiners.best_student import BestStudent, Evaluate, put_back
from emptyset.refiners.course import EXTREMES, Course
from emptyset.refiners.finite_losses import DivergedError, FiniteLosses
from emptyset.refiners.inundation import Inundation
from emptyset.refiners.learners import Learners
from emptyset.refiners.student_losses import NO_LABELS, Opinions, weighted_losses
from emptyset.refiners.training_parts import (
    Pair,
    augmented,
    mixed_batch,
    on_device,
    pair_of,
    pays_to_compile,
    pays_to_halve,
    uses_labels,
)

KEY = "distill"
# Batches of stored images between two looks for NaN; beside a source every epoch has one.
LOOK_EVERY = 50
WITHOUT_LABELS = (
    "Or train without: cross_entropy 0, and mixing 'none' or one whose name ends in '_images'."
)


class Training:
    """One student while it learns."""

    def __init__(
        self,
        student: Student,
        source: ImageSource | LiveSource,
        course: Course,
        seed: int,
        *,
        evaluate: Evaluate | None = None,
    ) -> None:
        self._student, self._source, self._seed = student, source, seed
        self._course = course
        self._live = source if isinstance(source, LiveSource) else None
        stages = course.relations > 0 or (self._live is not None and self._live.needs_features)
        self._new_pair = functools.partial(
            pair_of,
            student,
            bodies=course.feature_attention > 0,
            stages=course.relation_positions if stages else None,
            moves_statistics=course.moves_statistics,
        )
        self._pair: Pair = self._new_pair()
        # What the weights learn with; ranges are tracked in float32, without compiling.
        self._learning_pair = self._pair
        self._taps = stages or course.feature_attention > 0
        self._parameters = trainable(student.program)
        # All that training changes: kept and put back; the statistics among it are not optimised.
        self._changed: dict[str, torch.nn.Parameter] = dict(self._parameters)
        if course.moves_statistics:
            self._changed |= statistics(student.program)
        self._compiled = self._half = False
        self._inundation: Inundation | None = None
        self._classes = 0
        if course.mixing != "none":
            self._classes = self._class_count()
        if isinstance(source, StoredImages):
            self._check_labels(source.images.targets)
        # The number of the batch at hand.
        self._number = 0
        self._best = BestStudent(
            student,
            self._changed,
            self._live,
            held_out=course.held_out,
            seed=seed * 1_000_003 + 2,
            evaluate=evaluate,
        )
        self._finite = (
            FiniteLosses(student, self._changed, self._live) if self._live is not None else None
        )

    def _class_count(self) -> int:
        """Classes that the teacher tells apart."""
        with torch.no_grad():
            return int(self._pair.teacher(self._student.teacher.example(1))[0].shape[1])

    def _check_labels(self, targets: Tensor | None) -> None:
        """Once: a look at every batch would wait for the device."""
        if targets is None and self._course.cross_entropy > 0:
            raise ImagesError(NO_LABELS)
        if targets is not None and uses_labels(self._course):
            require_targets(targets, self._class_count(), who=KEY, advice=WITHOUT_LABELS)

    def run(self, monitor: Monitor) -> None:
        """All updates, or those that are left after a kill."""
        course, total = self._course, self._course.steps
        if self._live is not None and not course.learned:
            self._live.begin(total, course.batch_size, precision=course.precision, monitor=monitor)
        with self._learning():
            kept = monitor.restore(KEY)
            self._decide_execution(kept, monitor)
            if self._half:
                self._learning_pair = self._new_pair(half=True)
            if self._compiled:
                self._learning_pair = self._learning_pair.compiled()
            number = self._restore(kept)
            while number < total:
                try:
                    self._update(number)
                except (RuntimeError, NotCalibratedError) as error:
                    # Grids that follow from NaN are refused: that is not what went wrong.
                    self._look_for_fault(number + 1, error)
                    raise
                number += 1
                if self._finite is None and number % LOOK_EVERY == 0:
                    self._check_finite()
                monitor.advance(KEY, number, total)
                if number % course.epoch == 0 or number == total:
                    self._end_epoch(number)
                monitor.keep(KEY, lambda done=number: self._state(done), final=number == total)  # type: ignore[misc]
            if course.keep == "best" and self._best.best is not None:
                put_back(self._student, self._changed, self._best.best)

    def _decide_execution(self, kept: State | None, monitor: Monitor) -> None:
        """Once: compiled and eager code, bfloat16 and float32 differ, a resumed run must not."""
        course = self._course
        if kept is not None:
            self._compiled, self._half = bool(kept["compiled"]), bool(kept["half"])
            return
        self._half = pays_to_halve(self._student, course.precision)
        if course.learned or course.ranges != EXTREMES:
            self._compiled = pays_to_compile(
                self._student,
                batch_size=course.batch_size,
                updates=course.steps - max(course.warm_up, course.range_steps),
                monitor=monitor,
            )

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Inside, parameters take gradients; a fault leaves the student as it was, or was good."""
        student = self._student
        before = {path: p.detach().clone() for path, p in self._changed.items()}
        ranges = {name: q.state_dict() for name, q in student.quantizers.items()}
        ranges = {n: {k: v.clone() for k, v in state.items()} for n, state in ranges.items()}
        try:
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            self._learners = Learners(student, self._course)
            self._optimizer = self._new_optimizer()
            if self._course.inundation != "none":
                self._inundation = Inundation(student, self._optimizer, self._course)
            yield
            self._check_finite()
        except BaseException as error:
            finite = self._finite
            if isinstance(error, DivergedError) and finite is not None and finite.keep_good():
                student.originals = before | student.originals
                keep_biases_in_int32(student)
                raise
            put(self._changed, before)
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
        record = self._best.record(self._course.keep)
        if record is not None:
            student.records.append({"refiner": KEY} | record)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        course = self._course
        weights = {
            "params": list(self._parameters.values()),
            "start": course.learning_rate,
            "weight_decay": course.weight_decay,
        }
        if not course.learned:
            return torch.optim.SGD(
                [weights], lr=course.learning_rate, momentum=0.9, nesterov=course.nesterov
            )
        steps = {
            "params": self._learners.steps(),
            "start": course.step_learning_rate,
            "weight_decay": 0.0,
        }
        return torch.optim.Adam([weights, steps], lr=course.learning_rate)

    def _update(self, number: int) -> None:
        """One batch; ranges follow what passes through in it, and nothing that others show."""
        tracking = self._course.tracks(number)
        self._learners.track(tracking)
        try:
            self._turn(number, tracking)
        finally:
            self._learners.track(False)

    def _turn(self, number: int, tracking: bool) -> None:
        """The source learns, ranges move, then weights."""
        course, said, self._number = self._course, None, number
        batch = self._source.next_batch(course.batch_size)
        learns = number >= course.warm_up
        if isinstance(batch, Lesson):
            if batch.source_learns:
                # Beside ranges that move nothing is compiled or in bfloat16.
                said = self._teach_source(self._learning_pair if learns else self._pair, batch)
            # No student forward that nobody needs.
            if not batch.student_learns or not (learns or (tracking and said is None)):
                return
        # Ranges are those of whole images; what is learnt from may be mixed ones.
        shown = self._shown(batch, number, mixing=course.mixing if learns else "none")
        if learns:
            known = said if shown is batch and course.perturbation == 0 else None
            said = self._learn(shown, known, course.share_of_rate(number))
        elif tracking:
            with torch.no_grad():
                said = self._say(self._pair, shown, shown.images)
        if self._live is None and said is not None:
            heard = Disagreement(shown, said.theirs.detach(), said.ours.detach())
            self._source.learn_from(heard)

    def _shown(self, batch: Batch, number: int, *, mixing: str) -> Batch:
        """The batch as student and teacher see it: moved, cropped, mirrored or mixed."""
        course, device = self._course, self._student.device
        if isinstance(batch, Lesson) and (course.augmentation, mixing) == ("none", "none"):
            return batch
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        images = batch.images.detach().to(device)
        images = augmented(images, course.augmentation, course.flip, generator)
        batch = Batch(images, on_device(batch.targets, device))
        if mixing != "none":
            batch = mixed_batch(batch, mixing, self._classes, generator)
        return batch

    def _teach_source(self, pair: Pair, lesson: Lesson) -> Opinions:
        """Let the source learn from what both say, as functions of its images."""
        said = self._say(pair, lesson, lesson.images)
        if self._finite is not None:
            self._finite.add_output(lesson.images, said.ours, said.theirs, self._number)
        self._source.learn_from(
            Disagreement(
                lesson, said.theirs, said.ours, tuple(said.their_stages), tuple(said.our_stages)
            )
        )
        return replace(
            said,
            theirs=said.theirs.detach(),
            their_bodies=[x.detach() for x in said.their_bodies],
            their_stages=[x.detach() for x in said.their_stages],
        )

    def _say(self, pair: Pair, batch: Batch, images: Tensor) -> Opinions:
        """What student and teacher say of images that belong to a batch."""
        theirs = batch.teacher_logits if isinstance(batch, Lesson) else None
        expected: list[Tensor] = []
        # Known already, unless features are wanted or the images are others by now.
        if theirs is None or self._taps or images is not batch.images:
            # Gradients pass through the teacher only to the images, never to it.
            with torch.set_grad_enabled(images.requires_grad and torch.is_grad_enabled()):
                theirs, expected = pair.teacher(images)
        ours, found = pair.student(images)
        n = pair.bodies
        return Opinions(ours, theirs, found[:n], expected[:n], found[n:], expected[n:])

    def _learn(self, batch: Batch, known: Opinions | None, share: float) -> Opinions:
        """One optimizer step; ``known``: what both said of just this batch, if they did."""
        weights = [p for group in self._optimizer.param_groups for p in group["params"]]
        size = self._course.perturbation
        images = batch.images
        if known is None and (size > 0 or images.requires_grad):
            images = images.detach().requires_grad_(size > 0)
        said = known or self._say(self._learning_pair, batch, images)
        loss = self._loss(said, batch.targets)
        wanted = [*weights, images] if size > 0 else weights
        gradients = list(torch.autograd.grad(loss, wanted, allow_unused=True))
        if size > 0:
            direction = gradients.pop()
            assert direction is not None
            harder = (images + size * direction.sign()).detach()
            again = self._loss(self._say(self._learning_pair, batch, harder), batch.targets)
            more = torch.autograd.grad(again, weights, allow_unused=True)
            gradients = [
                None if a is None or b is None else a + b
                for a, b in zip(gradients, more, strict=True)
            ]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = group["start"] * share
        enlarged = nullcontext() if self._inundation is None else self._inundation.around(share)
        with enlarged:
            self._optimizer.step()
        self._learners.publish()
        return said

    def _loss(self, said: Opinions, targets: Tensor | None) -> Tensor:
        """The sum of all weighted losses."""
        losses = weighted_losses(self._course, said, targets)
        if self._finite is not None:
            self._finite.add(losses, self._number)
        return functools.reduce(operator.add, losses.values())

    def _look_for_fault(self, number: int, error: Exception) -> None:
        """Say which loss diverged, if one did."""
        try:
            if self._finite is not None:
                self._finite.look(number, learnt=False, rate=self._course.learning_rate)
            self._check_finite()
        except CollapseError as fault:
            raise fault from error

    def _end_epoch(self, number: int) -> None:
        """Look whether all is well, and how good the student is."""
        learnt = number > self._course.warm_up
        if self._finite is not None:
            self._finite.look(number, learnt=learnt, rate=self._course.learning_rate)
        if learnt:
            self._best.look(number)

    def _check_finite(self) -> None:
        scales = [quantizer.scale for quantizer in self._student.quantizers.values()]
        for values in (*self._changed.values(), *scales):
            if not bool(torch.isfinite(values).all()):
                raise CollapseError(
                    "distill: training diverged (NaN or infinity), so the student was left as it "
                    f"was. Lower learning_rate (it was {self._course.learning_rate:g})."
                )

    def _state(self, done: int) -> State:
        state = {f"parameter|{path}": p.detach() for path, p in self._changed.items()}
        state |= self._learners.state()
        for index, values in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer|{index}|{key}": v for key, v in values.items() if v is not None}
        state |= {f"source|{key}": value for key, value in self._source.state().items()}
        state |= {f"best|{key}": value for key, value in self._best.state().items()}
        if self._finite is not None:
            state |= {f"finite|{key}": value for key, value in self._finite.state().items()}
        state |= {"compiled": torch.tensor(self._compiled), "half": torch.tensor(self._half)}
        return {**state, "done": torch.tensor(done)}

    def _restore(self, state: State | None) -> int:
        """Take over what a killed run had learnt; gives how many batches that were."""
        if state is None:
            return self._course.first
        put(self._changed, _part(state, "parameter|"))
        self._learners.load_state(state)
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(state, "optimizer|").items():
            index, key = name.split("|")
            kept.setdefault(int(index), {})[key] = value.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self._source.load_state(_part(state, "source|"))
        self._best.load_state(_part(state, "best|"))
        if self._finite is not None:
            self._finite.load_state(_part(state, "finite|"))
        return int(state["done"])


def _part(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

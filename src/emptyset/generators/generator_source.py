"""A generator that is trained beside the student and gives its batches.

What makes it fast: the teacher's weights carry no gradients, its one forward serves the generator's
loss and the student's distillation, generator and teacher run in bfloat16 where the hardware is
faster so (statistics and losses in float32), tensors are channels-last, the step is compiled where
that pays, and no lesson waits for the device.

The step of a source that asks the student runs as it is: its loss goes through the student between
two parts of it.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.generators.class_mixture import ClassMixture
from emptyset.generators.conditions import Drawn
from emptyset.generators.generator import Generator, labels_in_batches
from emptyset.generators.initialisation import initialised
from emptyset.generators.judged import FEATURES, PENULTIMATE, STATISTICS, Judged
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.step import GeneratorStep
from emptyset.generators.watched_teacher import Watched, WatchedTeacher
from emptyset.images.image_set import Batch, ImageSet
from emptyset.images.image_source import Disagreement, Fault, Lesson
from emptyset.images.sending import sent
from emptyset.inversion.batch_plan import require_count
from emptyset.losses.first_fault import NEVER, never, noted
from emptyset.monitor import SILENT, Monitor, State
from emptyset.teachers.teacher import Teacher

# Of drawn images, where no student was ever taught.
BATCH_SIZE = 128
DECAY = 0.1
IMAGES = "generated images"
WEIGHTS = "gradient of the generator's weights"


class GeneratorSource:
    """A live source (``images/image_source.py``) made of the parts of a method.

    Attributes:
        method: The parts.
        generator: The network as it is now.
        needs_student: Whether it learns from what the student says.
        needs_features: Whether it needs the outputs of both networks' stages.
        labelled: Whether its images have targets.
    """

    def __init__(self, method: GeneratorMethod, teacher: Teacher, *, seed: int) -> None:
        """Build the network and draw its first weights.

        Raises:
            UnsupportedModelError: If the teacher lacks what the loss needs.
        """
        method.refuse(teacher)
        self.method, self._seed = method, seed
        self._teacher_hash, self._input = teacher.weights_hash, teacher.input
        self._teacher_name = teacher.public_name
        self._watched = WatchedTeacher(teacher)
        self.needs_student = method.needs_student
        self.needs_features = method.needs(FEATURES)
        self.labelled = method.labelled
        first = torch.Generator().manual_seed(seed)
        with torch.device("meta"):
            built = method.build()
        module = initialised(built, first, torch.device("cpu"))
        assert isinstance(module, Generator)
        if method.prepare is not None:
            method.prepare(module)
        self.generator = module.to(self._watched.device)
        self._trained = [p for p in self.generator.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(
            self._trained,
            lr=method.config.learning_rate,
            betas=method.config.momentum,
            fused=self._watched.device.type in ("cpu", "cuda"),
        )
        self._random = torch.Generator().manual_seed(seed * 1_000_003 + 1)
        self._step = GeneratorStep(method, self.generator, self._watched)
        self._lessons, self._total, self._batch_size = 0, 0, BATCH_SIZE
        # The first lesson of the schedule: earlier ones are those of another student.
        self._first = 0
        # Lessons in which each term, and the images, first were not finite: nobody has to look.
        self._bad_since = never((len(method.terms) + 1,), self._watched.device)
        self._open: tuple[Tensor, Lesson, Watched | None] | None = None

    def begin(
        self,
        lessons: int,
        batch_size: int,
        *,
        precision: str = "auto",
        monitor: Monitor = SILENT,
    ) -> None:
        """Told before the first batch: how many there will be, and of how many images.

        A generator that has been trained before keeps what it has learnt; the schedule of its rate
        begins anew.

        Args:
            lessons: Batches to come.
            batch_size: Images in each.
            precision: Of products in generator and teacher, whose answers the student learns from:
                ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the hardware is faster so.
            monitor: Hears of what takes long.
        """
        self._total, self._batch_size, self._first = lessons, batch_size, self._lessons
        self._lay_groundwork(monitor)
        self._step.decide(lessons, batch_size, precision, monitor)

    def next_batch(self, size: int) -> Lesson:
        """``size`` new images; a method that needs the teacher alone learns here.

        Raises:
            ImagesError: If a batch is to have fewer than 2 images.
        """
        if size < 2:
            raise ImagesError(
                f"{self.method.name}: BatchNorm in the generator needs at least 2 images in a "
                f"batch. Got {size}. Raise batch_size."
            )
        self._lay_groundwork(SILENT)
        mixture = self.method.sampler.draw(self._random, size)
        drawn, targets = self._on_device(mixture)
        number, self._lessons = self._lessons - self._first, self._lessons + 1
        self._set_rate(number)
        if not self.needs_student:
            images, logits, terms = self._step.run(drawn, targets)
            self._note(images, terms)
            self._improve(self._step.loss(terms))
            return Lesson(images.detach(), targets, logits.detach())
        cycle = self.method.student_steps
        if cycle and number % (cycle + 1) < cycle:
            with torch.no_grad():
                images = self._step.render(drawn)
            self._note(images)
            return Lesson(images, targets)
        images = self._step.render(drawn)
        self._note(images)
        leaf = images.detach().requires_grad_()
        own = self.method.needs(STATISTICS) or self.method.needs(PENULTIMATE)
        watched = self._step.watch(leaf) if own else None
        said = None if watched is None else watched.logits.detach()
        lesson = Lesson(leaf, targets, said, student_learns=not cycle, source_learns=True)
        self._open = (images, lesson, watched)
        return lesson

    def learn_from(self, outcome: Disagreement) -> None:
        """Learn from a lesson with ``source_learns``, through what both networks said of it."""
        if self._open is None:
            return
        images, lesson, watched = self._open
        self._open = None
        judged = Judged(
            lesson.images,
            lesson.targets,
            outcome.teacher_logits if watched is None else watched.logits,
            () if watched is None else watched.layers,
            None if watched is None else watched.penultimate,
            outcome.student_logits,
            outcome.teacher_features,
            outcome.student_features,
        )
        terms = self._step.judge(judged)
        self._note(images, terms)
        # To the images first: the student's graph is still needed, its weights get no gradient.
        (pull,) = torch.autograd.grad(self._step.loss(terms), [lesson.images], retain_graph=True)
        self._improve(images, pull)

    def draws(self, count: int, *, seed: int) -> Iterator[Batch]:
        """``count`` images as the generator makes them now, in batches as it was trained on.

        Superposed batches have their share. BatchNorm uses the statistics of the batch, as in
        training; running statistics and everything else stay as they are.

        Args:
            count: At least 2; of the last batch only so many are given as are missing.
            seed: Of labels and noise.

        Yields:
            Images [teacher's normalised units] and targets, on the CPU.

        Raises:
            ImagesError: If the count is below 2.
        """
        require_count(self.method.name, count)
        random, left = torch.Generator().manual_seed(seed), count
        sampler, size = self.method.sampler, self._batch_size
        for mixture in labels_in_batches(sampler, count, size, random):
            drawn = _moved(self.generator.draw(random, mixture), self._watched.device)
            with torch.no_grad(), self.generator.statistics_kept():
                images = self._step.render(drawn)[:left].cpu().contiguous()
            yield Batch(images, self._labels(mixture)[:left] if self.method.labelled else None)
            left -= len(images)

    def drawn(self, count: int, *, seed: int) -> ImageSet:
        """The same images as ``draws``, in one set with its history."""
        batches = list(self.draws(count, seed=seed))
        targets = [batch.targets for batch in batches if batch.targets is not None]
        found = torch.cat(targets) if targets else None
        entry = self.card() | {"count": count, "draw_seed": seed}
        return ImageSet(torch.cat([b.images for b in batches]), found, history=(entry,))

    def card(self) -> dict[str, Any]:
        """What tells this generator from every other (JSON data)."""
        return {
            "stage": "synthesize",
            "method": self.method.name,
            "settings": dict(self.method.settings),
            "seed": self._seed,
            "teacher": self._teacher_hash,
            "teacher_name": self._teacher_name,
            "lessons": self._lessons,
            "batch_size": self._batch_size,
            "classes": self.generator.classes,
            "input": list(self._watched.shape),
            "mean": list(self._input.mean),
            "std": list(self._input.std),
        } | self._step.execution.described()

    def fault(self) -> Fault | None:
        """What stopped being finite first, or None. Waits for the device."""
        since = self._bad_since.tolist()
        first = min(since)
        if first == NEVER:
            # What the last lesson did to the weights, no image has shown yet.
            sound = all(bool(torch.isfinite(weight).all()) for weight in self._trained)
            return None if sound else Fault(f"{self.method.name}: {WEIGHTS}", 0)
        # Where terms were judged, one of them says more than the images.
        name = [*(term.name for term in self.method.terms), IMAGES][since.index(first)]
        return Fault(f"{self.method.name}: {name}", self._lessons - first)

    def state(self) -> State:
        """Everything that decides the next batches."""
        state: State = {f"network|{k}": v for k, v in self.generator.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer|{index}|{k}": v for k, v in values.items()}
        numbers = torch.tensor([self._lessons, self._total, self._batch_size, self._first])
        state |= {"numbers": numbers, "random": self._random.get_state()}
        state["bad_since"] = self._bad_since
        if self.method.groundwork is not None:
            found = self.method.groundwork.state()
            state |= {f"groundwork|{name}": value for name, value in found.items()}
        return {**state, **self._step.execution.state()}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        network = {k[8:]: v for k, v in state.items() if k.startswith("network|")}
        self.generator.load_state_dict(network)
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer|"):
                _, index, key = name.split("|")
                kept.setdefault(int(index), {})[key] = value.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self._lessons, self._total, self._batch_size, self._first = (
            int(n) for n in state["numbers"]
        )
        self._random.set_state(state["random"].cpu())
        self._bad_since.copy_(state["bad_since"])
        if self.method.groundwork is not None:
            found = {k[11:]: v for k, v in state.items() if k.startswith("groundwork|")}
            self.method.groundwork.load_state(found)
        self._step.restore(state)
        self._open = None

    def load_network(self, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        """Take over a trained network.

        Args:
            tensors: State dict of ``generator``.
            card: What ``card`` said of it.

        Raises:
            ImagesError: If names or shapes differ; then nothing is taken over.
        """
        own = self.generator.state_dict()
        differing = [
            f"{name} is {_shape(tensors.get(name))}, not {_shape(own.get(name))}"
            for name in sorted({*own, *tensors})
            if _shape(tensors.get(name)) != _shape(own.get(name))
        ]
        if differing:
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise ImagesError(
                f"these tensors are not the network of {self.method.name} with the settings of "
                f"its card: {differing[0]}{more}. Give the whole generator.safetensors of a run."
            )
        self.generator.load_state_dict(tensors)
        self._lessons, self._batch_size = int(card["lessons"]), int(card["batch_size"])

    def _lay_groundwork(self, monitor: Monitor) -> None:
        if self.method.groundwork is not None:
            self.method.groundwork.lay(seed=self._seed, monitor=monitor)

    def _on_device(self, mixture: ClassMixture) -> tuple[Drawn, Tensor | None]:
        """What the generator needs, and the targets that the images keep."""
        drawn = self.generator.draw(self._random, mixture)
        if self.method.labelled:
            drawn["targets"] = self._labels(mixture)
        drawn = _moved(drawn, self._watched.device)
        return drawn, drawn.pop("targets", None)

    def _labels(self, mixture: ClassMixture) -> Tensor:
        """``(N,)`` classes, or ``(N, K)`` probabilities where some batches are superposed."""
        if self.method.sampler.superposed_share:
            return mixture.soft(self.generator.classes)
        return mixture.classes[:, 0]

    def _note(self, images: Tensor, terms: Tensor | None = None) -> None:
        """Remember in which lesson something first was not finite."""
        whole = torch.isfinite(images.detach()).all()[None]
        if terms is None:
            terms = torch.zeros(len(self.method.terms), device=whole.device)
        fine = torch.cat([torch.isfinite(terms.detach()), whole])
        self._bad_since = noted(self._bad_since, fine, self._lessons - 1)

    def _set_rate(self, number: int) -> None:
        config = self.method.config
        # As decimals: 0.1 of 1,000 lessons are 100, which the nearest binary fraction exceeds.
        shares = [Fraction(str(m)) for m in config.milestones]
        passed = [m for m in shares if self._total and number >= m * self._total]
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * DECAY ** len(passed)

    def _improve(self, outcome: Tensor, pull: Tensor | None = None) -> None:
        """One step of Adam down the gradient of a loss, or of images pulled somewhere."""
        gradients = torch.autograd.grad(outcome, self._trained, pull, allow_unused=True)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = _laid_out_as(parameter, gradient)
        self._optimizer.step()
        for parameter in self._trained:
            parameter.grad = None


def _laid_out_as(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """The gradient with the parameter's strides.

    Convolutions of channels-last images give channels-last gradients, and torch's fused Adam takes
    the values of both in the order of memory, whatever they mean.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "one number"


def _moved(drawn: Drawn, device: torch.device) -> Drawn:
    return {name: sent(value, device) for name, value in drawn.items()}

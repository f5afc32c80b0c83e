"""The students that are measured: one for every pair of widths, on the same plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from emptyset.bit_allocation.freedom import (
    Freedom,
    freedoms,
    narrowed,
    overrides_for,
    probe_bits,
    sizes,
)
from emptyset.bit_allocation.layers import Layer, Option
from emptyset.bit_allocation.sensitivity import damages
from emptyset.errors import RecipeError
from emptyset.graph.memory import largest_batch
from emptyset.graph.student import Student, prepare
from emptyset.images.folder import LazyImages, spread
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import Images
from emptyset.monitor import Monitor, PrefixedMonitor
from emptyset.quantizers.bits import Bits
from emptyset.registry import refiners
from emptyset.teachers.teacher import Teacher

CALIBRATOR = "calibrate"
BATCH, PIXELS_IN_A_FORWARD = 64, 64 * 64 * 64
QUANTIZER = "quantizer:"


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        layers: With the damage of every option.
        together: KL divergence with every quantizer on, by the widths of the uniform plan [nat].
    """

    layers: list[Layer]
    together: dict[Bits, float]


@dataclass(frozen=True)
class Candidates:
    """Everything that a layer may become.

    Attributes:
        teacher: The network.
        bits: Bits of what is not chosen.
        grid: Pairs of widths to try.
        freedom: What the plan leaves open, by layer path.
        layers: Every layer with its options, not measured yet.
        making: Arguments of `prepare`, overrides excepted.
        overrides: The user's own.
    """

    teacher: Teacher
    bits: Bits
    grid: tuple[Bits, ...]
    freedom: dict[str, Freedom]
    layers: list[Layer]
    making: dict[str, Any]
    overrides: dict[str, str]

    @staticmethod
    def of(
        teacher: Teacher,
        bits: Bits,
        *,
        weights: Sequence[int],
        activations: Sequence[int],
        plan: str,
        batch_norm: str,
        overrides: dict[str, str],
        settings: dict[str, Any],
    ) -> "Candidates":
        """What a plan leaves to choose, found by preparing it twice.

        Raises:
            CaptureError: If the network cannot be captured.
            RecipeError: If a setting is wrong.
        """
        making: dict[str, Any] = {"plan": plan, "batch_norm": batch_norm, "plan_settings": settings}
        student = prepare(teacher, bits, overrides=overrides, **making)
        probe = prepare(teacher, probe_bits(bits), overrides=overrides, **making)
        freedom = freedoms(student, probe)
        grid = tuple(Bits(w, a) for a in activations for w in weights)
        layers = []
        for layer in sizes(student).values():
            free = freedom[layer.name]
            pairs = dict.fromkeys(_given(free, wanted) for wanted in grid)
            options = tuple(Option(w, a, 0.0) for w, a in pairs)
            layers.append(replace(layer, free_weights=free.weights, options=options))
        return Candidates(teacher, bits, grid, freedom, layers, making, overrides)

    def options(self, layers: Sequence[Layer], wanted: Bits) -> list[Option]:
        """The option that every layer takes in the uniform plan of these widths."""
        return [
            next(
                option
                for option in layer.options
                if (option.weights, option.inputs) == _given(self.freedom[layer.name], wanted)
            )
            for layer in layers
        ]

    def measure(
        self, images: Images, *, memory: float | None, seed: int, monitor: Monitor
    ) -> Measured:
        """The damage of every option, each layer alone, and of every uniform plan."""
        found: dict[tuple[str, int, int | None], float] = {}
        together: dict[Bits, float] = {}
        for wanted in self.grid:
            chosen = self.options(self.layers, wanted)
            keys = {
                layer.name: (layer.name, option.weights, option.inputs)
                for layer, option in zip(self.layers, chosen, strict=True)
            }
            names = [name for name, key in keys.items() if key not in found]
            overrides = overrides_for(self.freedom, wanted)
            student = self._student(overrides, images, memory, seed, monitor, f"{wanted}")
            self._refuse_narrowed(student)
            measured = damages(
                student, names, images, batch_size=_batch_size(student, memory),
                key=f"damages-{wanted}", monitor=monitor,
            )  # fmt: skip
            found |= {keys[name]: damage for name, damage in measured.alone.items()}
            together[wanted] = measured.together
        layers = [
            replace(
                layer,
                options=tuple(
                    replace(option, damage=found[layer.name, option.weights, option.inputs])
                    for option in layer.options
                ),
            )
            for layer in self.layers
        ]
        return Measured(layers, together)

    def damage_of(
        self,
        overrides: Mapping[str, str],
        images: Images,
        *,
        memory: float | None,
        seed: int,
        monitor: Monitor,
    ) -> float:
        """KL divergence of the teacher's predictions to those of such a student [nat]."""
        student = self._student(overrides, images, memory, seed, monitor, "chosen")
        size = _batch_size(student, memory)
        return damages(
            student, [], images, batch_size=size, key="damages-chosen", monitor=monitor
        ).together

    def _student(
        self,
        chosen: Mapping[str, str],
        images: Images,
        memory: float | None,
        seed: int,
        monitor: Monitor,
        key: str,
    ) -> Student:
        """A calibrated student; after a kill its ranges are read back."""
        # No layer is in both: what the user fixed is not free.
        student = prepare(
            self.teacher, self.bits, overrides={**chosen, **self.overrides}, **self.making
        )
        kept = monitor.restore(f"ranges-{key}")
        if kept is not None:
            student.load_state_dict(student.state_dict() | kept)
            return student
        entry = refiners.get(CALIBRATOR)
        calibrator = entry.make(entry.config(batch_size=_batch_size(student, memory)))
        calibrator.refine(student, images, seed=seed, monitor=PrefixedMonitor(monitor, key))
        monitor.keep(f"ranges-{key}", lambda: _ranges(student), final=True)
        return student

    def _refuse_narrowed(self, student: Student) -> None:
        names = narrowed(student)
        if names:
            raise RecipeError(
                f"mixed_precision.activations: plan '{self.making['plan']}' at {self.bits} rounds "
                f"the input of {names[0]} to {self.bits.activations} bits before the layer could "
                "read it at more. Ask for --bits with as many bits of activations as the widest in "
                "mixed_precision.activations."
            )


def _given(free: Freedom, wanted: Bits) -> tuple[int, int | None]:
    """Bits of weights and inputs that a layer gets when these are asked for."""
    return (
        wanted.weights if free.weights else free.base.weights,
        wanted.activations if free.inputs else free.base.inputs,
    )


def some_of(images: ImageSet | LazyImages, count: int) -> ImageSet | LazyImages:
    """At most ``count`` of the images, spread evenly: stored images are often sorted by class."""
    if len(images) <= count:
        return images
    if isinstance(images, LazyImages):
        return images.limited(count)
    return images.subset(spread(len(images), count))


def _batch_size(student: Student, memory: float | None) -> int:
    _, height, width = student.teacher.input.shape
    size = max(1, min(BATCH, PIXELS_IN_A_FORWARD // (height * width)))
    # Half, because the inputs of all blocks are held beside the forward.
    return size if memory is None else largest_batch(student, memory / 2, at_most=size)


def _ranges(student: Student) -> dict[str, Any]:
    """What calibration decided; the weights are the teacher's."""
    state = student.state_dict()
    return {name: value for name, value in state.items() if name.startswith(QUANTIZER)}

"""Sets every range of a student: weights exactly, activations from a stream of images.

Source: ours; the parts are the range estimators of `emptyset.ranges`.
Idea: run the float network over the images, let an estimator watch every tensor that is quantized,
    then set the grids. No gradient, one pass, memory that does not grow with the images. Or, with
    no image at all, let it see what the BatchNorms say of every tensor (Nagel et al. 2019,
    arXiv:1906.04721, section 4.1: mean ∓ 6 deviations).
Needs: a prepared student, and at least one batch of images or a network with BatchNorm.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.operators import attribute, hands_on
from emptyset.graph.student import Student
from emptyset.images.beyond_pixels import BeyondPixels
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor, State
from emptyset.quantizers.affine import AffineFakeQuantizer
from emptyset.ranges.estimator import RangeEstimator
from emptyset.reconstruction.units import weight_paths
from emptyset.refiners.statistics_as_values import observe_statistics
from emptyset.registry import ranges, refiners

PIXELS_IN_A_FORWARD = 64 * 64 * 64
# Name of the quantizer of the image itself.
INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """Settings of calibration.

    Attributes:
        weight_range: Range estimator of weights; ``auto``: ``min_max`` at 8 bits, ``lp_norm``
            below.
        activation_range: Range estimator of activations; ``auto`` likewise.
        input_range: Range of the image itself: ``pixels``: black to white, which the teacher's mean
            and std tell; ``observed``: like any other activation.
        activation_values: What activations are estimated from: ``images``, or ``batch_norm``: what
            the network's BatchNorms tell; images are then not looked at.
        deviations: With ``batch_norm`` and ``min_max``, how many standard deviations the range
            reaches from the mean of each channel.
        batch_size: Most images in one forward; fewer of images above 64 x 64, so that memory
            stays about the same.
    """

    weight_range: str = "auto"
    activation_range: str = "auto"
    input_range: str = "pixels"
    activation_values: str = "images"
    deviations: float = 6.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Got {self.batch_size}.")
        if self.input_range not in ("pixels", "observed"):
            raise ValueError(
                f"input_range must be 'pixels' or 'observed'. Got '{self.input_range}'."
            )
        if self.activation_values not in ("images", "batch_norm"):
            raise ValueError(
                "activation_values must be 'images' or 'batch_norm'. Got "
                f"'{self.activation_values}'."
            )
        if not self.deviations > 0:
            raise ValueError(f"deviations must be above 0. Got {self.deviations}.")
        for name in (self.weight_range, self.activation_range):
            if name != "auto":
                ranges.get(name)

    @classmethod
    def smallest(cls) -> "CalibrateConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(batch_size=4)


@refiners.register(
    "calibrate",
    CalibrateConfig,
    sentence="Sets every range: weights exactly, activations from one pass over the images.",
    source="ours",
)
@dataclass(frozen=True, slots=True)
class Calibrate:
    """See the module docstring."""

    config: CalibrateConfig

    def needs_images(self) -> bool:
        """Whether it looks at images."""
        return self.config.activation_values == "images"

    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Set all ranges of ``student``, in place.

        Args:
            student: A prepared student.
            images: Normalised images; their order does not matter, all are used.
            seed: Unused: nothing here is random.
            monitor: Hears of progress; keeps what was seen, so that a killed run goes on.

        Raises:
            ImagesError: If there are no images.
            NotCalibratedError: If values that pass through are not finite.
            UnsupportedModelError: If BatchNorm is to tell the ranges and does not.
        """
        del seed
        watched = {n: q for n, q in student.quantizers.items() if q.axis is None}
        estimators = {name: self._estimator(q) for name, q in watched.items()}
        if self.config.activation_values == "batch_norm":
            observe_statistics(student, estimators, self.config.deviations)
        else:
            self._observe(student, images, watched, estimators, monitor)
        paths = weight_paths(student)
        for name, quantizer in student.quantizers.items():
            if name in estimators:
                quantizer.set_range(*estimators[name].low_high())
            else:
                self._set_weight(attribute(student.program, paths.get(name, name)), quantizer)
        if self.config.input_range == "pixels" and _quantizes_images_alone(student):
            student.quantizers[INPUT].set_range(*student.teacher.input.pixel_range())
        keep_biases_in_int32(student)

    def _observe(
        self,
        student: Student,
        images: Images,
        watched: dict[str, AffineFakeQuantizer],
        estimators: dict[str, RangeEstimator],
        monitor: Monitor,
    ) -> None:
        """One pass over the images."""
        if len(images) == 0:
            raise ImagesError(
                "calibrate: there are no images. Give at least one batch, or set "
                "activation_values to batch_norm, which needs none."
            )
        done = _restore(estimators, monitor.restore("calibrate"))
        beyond = BeyondPixels(student.teacher.input)
        with student.unquantized(), torch.no_grad(), _Watching(watched, estimators):
            seen = 0
            for batch in images.batches(self._batch_size(student)):
                seen += len(batch.images)
                if seen <= done:
                    continue
                beyond.look(batch.images)
                student(batch.images.to(student.device))
                monitor.advance("calibrate", seen, len(images))
                count = seen
                monitor.keep("calibrate", lambda count=count: _state(estimators, count))  # type: ignore[misc]
        ends = self.config.input_range == "pixels" and _quantizes_images_alone(student)
        if ends and (warning := beyond.warning()) is not None:
            monitor.note(f"Warning: calibrate: {warning}")

    def _batch_size(self, student: Student) -> int:
        _, height, width = student.teacher.input.shape
        return max(1, min(self.config.batch_size, PIXELS_IN_A_FORWARD // (height * width)))

    def _set_weight(self, weight: Tensor, quantizer: AffineFakeQuantizer) -> None:
        estimator = self._estimator(quantizer)
        estimator.update(weight.detach())
        quantizer.set_range(*estimator.low_high())

    def _estimator(self, quantizer: AffineFakeQuantizer) -> RangeEstimator:
        wanted = (
            self.config.activation_range if quantizer.axis is None else self.config.weight_range
        )
        if wanted == "auto":
            wanted = "min_max" if quantizer.bits == 8 else "lp_norm"
        entry = ranges.get(wanted)
        factory = entry.make(entry.config())
        estimator: RangeEstimator = factory.estimator(
            axis=quantizer.axis,
            quant_min=quantizer.quant_min,
            quant_max=quantizer.quant_max,
            symmetric=quantizer.symmetric,
        )
        return estimator


def _quantizes_images_alone(student: Student) -> bool:
    """Whether the image has a quantizer that no other tensor shares (by a concatenation, say)."""
    image = student.quantizers.get(INPUT)
    for node in student.program.graph.nodes:
        if node.op == "call_module" and student.program.get_submodule(str(node.target)) is image:
            source = node.args[0]
            while source.op == "call_module" or hands_on(source):
                source = source.args[0]
            if source.op != "placeholder":
                return False
    return image is not None


class _Watching:
    """Inside, each quantizer's input goes to its estimator; hooks are always removed."""

    def __init__(
        self,
        watched: dict[str, AffineFakeQuantizer],
        estimators: dict[str, RangeEstimator],
    ) -> None:
        self._watched, self._estimators = watched, estimators
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, quantizer in self._watched.items():
            estimator = self._estimators[name]

            def watch(_: Any, inputs: tuple[Tensor], estimator: RangeEstimator = estimator) -> None:
                estimator.update(inputs[0])

            self._handles.append(quantizer.register_forward_pre_hook(watch))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _state(estimators: dict[str, RangeEstimator], done: int) -> State:
    state = {
        f"{name}|{key}": value
        for name, estimator in estimators.items()
        for key, value in estimator.state().items()
    }
    return {**state, "done": torch.tensor(done)}


def _restore(estimators: dict[str, RangeEstimator], state: State | None) -> int:
    """Load what a killed run had seen; gives how many images that were."""
    if state is None:
        return 0
    for name, estimator in estimators.items():
        prefix = f"{name}|"
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        estimator.load_state(part)
    return int(state["done"])

"""BatchNorm re-estimation on the folded network: mean and deviation of every channel as before.

Source: ours as a refiner; the idea is that of BatchNorm tuning after quantization, e.g. Hubara et
    al. 2020, "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer
    Programming", arXiv:2006.10518.
Idea: a BatchNorm that saw the quantized network would make its output as wide and as high as
    before. Folded, that is one factor and one offset per channel:

        r = σ_float / σ_quantized
        weight scale ← r · scale     bias ← r (bias - μ_quantized) + μ_float

    The factor goes into the weight and its scale alike, so no code changes, and rounding that was
    learnt stays. Layer after layer, each behind the corrected ones.
    Statistics are matched, not outputs: a channel whose rounding error is large may become wider
    though its squared error grows. `bias_correction` matches means alone and has no such case.
Needs: a calibrated student with BatchNorm folded, and images.
Differs from source: nothing known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.graph.activation_statistics import layer_statistics
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.channel_chains import bias_of
from emptyset.graph.layer_moments import (
    Moments,
    float_moments,
    layers_of_images,
    quantized_moments_in_turn,
)
from emptyset.graph.operators import layer_path
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.refiners.folded_students import (
    MeasuringConfig,
    add_to_bias,
    corrected_layers,
    images_in_room,
    require_folded,
    require_ranges,
    scale_outputs,
)
from emptyset.registry import refiners

LAYERS = ("batch_norm", "all")
KEY = "batch_norm_reestimation"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormReestimationConfig(MeasuringConfig):
    """Settings of BatchNorm re-estimation.

    Attributes:
        layers: ``batch_norm``: layers that a BatchNorm was folded into; ``all``: the others too.
        blend: Share of the way from what is measured to what the float network has: 1 goes all the
            way. With fewer than 256 images means are uncertain: choose 0.3 or less.
        largest_factor: No channel is made wider or narrower by more than this factor. Ours.
    """

    layers: str = "batch_norm"
    blend: float = 1.0
    largest_factor: float = 2.0

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise ValueError(f"layers must be one of {', '.join(LAYERS)}. Got '{self.layers}'.")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must be from 0 to 1. Got {self.blend}.")
        if not self.largest_factor >= 1:
            raise ValueError(f"largest_factor must be at least 1. Got {self.largest_factor}.")
        MeasuringConfig.__post_init__(self)

    @classmethod
    def smallest(cls) -> "BatchNormReestimationConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(batch_size=4)


@refiners.register(
    "batch_norm_reestimation",
    BatchNormReestimationConfig,
    sentence="Gives every channel of the quantized network the mean and deviation it had before.",
    source="ours; adaptive BatchNorm, Hubara et al. 2020, arXiv:2006.10518",
)
@dataclass(frozen=True, slots=True)
class BatchNormReestimation:
    """See the module docstring."""

    config: BatchNormReestimationConfig

    @torch.no_grad()
    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Match means and deviations of ``student``, in place; originals are kept.

        Args:
            student: A calibrated student.
            images: Normalised images; the first ``most_images`` are used.
            seed: Unused: nothing here is random.
            monitor: Hears of progress; keeps what was done, so that a killed run goes on.

        Raises:
            ImagesError: If there are no images.
            NotCalibratedError: If the student has no ranges.
            UnsupportedModelError: If no layer has a folded BatchNorm.
        """
        del seed
        require_folded(student, KEY)
        require_ranges(student, KEY)
        if len(images) == 0:
            raise ImagesError(f"{KEY}: there are no images. Give at least one batch.")
        layers = layers_of_images(student.program, self._layers(student))
        config = self.config
        shown = images_in_room(
            student, images, config.most_images, config.batch_size, config.memory
        )
        wanted = float_moments(student, layers, shown.batches)
        kept = dict(monitor.restore(KEY) or {})
        in_turn = quantized_moments_in_turn(student, layers, shown.batches, limit=shown.limit)
        for done, (layer, found) in enumerate(in_turn, start=1):
            path = layer_path(layer)
            if path not in kept:
                kept[path] = torch.stack(self._correction(found, wanted[layer]))
            _correct(student, layer, *kept[path])
            monitor.advance(KEY, done, len(layers))
            monitor.keep(KEY, lambda: dict(kept), final=done == len(layers))
        keep_biases_in_int32(student)

    def _layers(self, student: Student) -> list[fx.Node]:
        layers = corrected_layers(student)
        if self.config.layers == "all":
            return layers
        chosen = [n for n in layers if layer_statistics(student.program, n) is not None]
        if not chosen:
            raise UnsupportedModelError(
                f"{KEY}: {student.teacher.name} has no layer with a BatchNorm behind it. Set "
                "layers to 'all', or use the refiner 'bias_correction' with statistics 'empirical'."
            )
        return chosen

    def _correction(self, found: Moments, wanted: Moments) -> tuple[Tensor, Tensor]:
        """``(C,)`` factor and offset: ``out ← factor · out + offset``."""
        share, most = self.config.blend, self.config.largest_factor
        deviation = (1 - share) * found.deviation + share * wanted.deviation
        mean = (1 - share) * found.mean + share * wanted.mean
        # A channel that is constant in either network has no width to match.
        live = torch.minimum(found.deviation, wanted.deviation) > 1e-6 * wanted.deviation.amax()
        factor = torch.where(live, deviation / found.deviation.where(live, 1.0), 1.0)
        factor = factor.clamp(1 / most, most)
        return factor, mean - factor * found.mean


def _correct(student: Student, layer: fx.Node, factor: Tensor, offset: Tensor) -> None:
    """Scale weight and grid alike, then move the bias."""
    scale_outputs(student, layer, factor)
    bias = bias_of(student.program, layer)
    before = torch.zeros_like(factor) if bias is None else bias.double().to(factor.device)
    add_to_bias(student, layer, (factor - 1) * before + offset.to(factor))

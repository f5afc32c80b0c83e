"""Bias correction: takes out the shift that rounding gives the mean of every channel.

Paper: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
    arXiv:1906.04721, section 4.2 and appendix.
Idea: rounded weights ``W + ε`` move the mean of a layer's output by ``ε E[x]``; that much is taken
    from the bias.

    analytic:   E[x] of every input channel follows from the BatchNorm before it, for a ReLU
                ``E[x] = γ φ(β/γ) + β Φ(β/γ)``; no images
    empirical:  the means of both networks are measured on images, layer after layer, each behind
                the corrected ones

``weight_norms`` adds the other half of ACIQ's correction (Banner et al. 2019, arXiv:1810.05723):
    ``ξ = ‖W - E[W]‖ / ‖Ŵ - E[Ŵ]‖`` of every output channel goes into the weight's
    scale, codes unchanged.
On the images that it measures no layer's squared error grows: the square of its mean is taken out
    (``empirical``; nearly so where a bias is a whole number of steps).
Needs: a calibrated student with BatchNorm folded; BatchNorm (analytic) or images (empirical).
Differs from source: zero padding is counted (the image of the means is really convolved). ACIQ adds
    ``μ = E[W] - E[Ŵ]`` to the dequantized weights, which no integer code can express; the bias
    takes the effect of it, for the mean input. Layers that read the image are not corrected
    analytically, for nothing tells its mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.errors import ImagesError
from emptyset.graph.activation_statistics import activation_statistics
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.channel_chains import weight_of
from emptyset.graph.channel_labels import shape_of
from emptyset.graph.edits import quantizer_of
from emptyset.graph.layer_moments import float_moments, layers_of_images, quantized_moments_in_turn
from emptyset.graph.operators import layer_path, name_of, weight_axis
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.ranges.clipped_normal import ClippedNormal
from emptyset.refiners.folded_students import (
    MeasuringConfig,
    add_to_bias,
    corrected_layers,
    images_in_room,
    original_weight,
    require_folded,
    require_ranges,
    scale_outputs,
)
from emptyset.refiners.statistics_as_values import require_batch_norm
from emptyset.registry import refiners

METHODS = ("analytic", "empirical")


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCorrectionConfig(MeasuringConfig):
    """Settings of bias correction.

    Attributes:
        statistics: Where means come from: ``analytic``: from BatchNorm, without images;
            ``empirical``: from images, layer after layer.
        weight_norms: Also give every output channel of the weight the norm that it had before
            rounding (ACIQ).
    """

    statistics: str = "analytic"
    weight_norms: bool = False

    def __post_init__(self) -> None:
        if self.statistics not in METHODS:
            raise ValueError(
                f"statistics must be one of {', '.join(METHODS)}. Got '{self.statistics}'."
            )
        MeasuringConfig.__post_init__(self)

    @classmethod
    def smallest(cls) -> "BiasCorrectionConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(statistics="empirical", batch_size=4)


@refiners.register(
    "bias_correction",
    BiasCorrectionConfig,
    sentence="Takes out of every bias the shift of the mean that rounding brings.",
    source="Nagel et al. 2019, arXiv:1906.04721; Banner et al. 2019, arXiv:1810.05723",
)
@dataclass(frozen=True, slots=True)
class BiasCorrection:
    """See the module docstring."""

    config: BiasCorrectionConfig

    def needs_images(self) -> bool:
        """Whether it looks at images."""
        return self.config.statistics == "empirical"

    @torch.no_grad()
    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Correct the biases of ``student``, in place; its originals are kept for float mode.

        Args:
            student: A calibrated student.
            images: Normalised images; the first ``most_images`` are used, or none.
            seed: Unused: nothing here is random.
            monitor: Hears of progress; keeps what was done, so that a killed run goes on.

        Raises:
            ImagesError: If images are needed and there are none.
            NotCalibratedError: If the student has no ranges.
            UnsupportedModelError: If BatchNorm is not folded, or needed and not there.
        """
        del seed
        require_folded(student, "bias_correction")
        require_ranges(student, "bias_correction")
        if self.config.statistics == "analytic":
            require_batch_norm(student, "bias_correction")
        elif len(images) == 0:
            raise ImagesError(
                "bias_correction: there are no images. Give at least one batch, or set statistics "
                "to analytic, which needs none."
            )
        layers = corrected_layers(student)
        if self.config.weight_norms:
            for layer in layers:
                _match_norms(student, layer)
        if self.config.statistics == "analytic":
            self._analytic(student, layers, monitor)
        else:
            self._empirical(student, layers, images, monitor)
        keep_biases_in_int32(student)

    def _analytic(self, student: Student, layers: list[fx.Node], monitor: Monitor) -> None:
        # What an earlier correction took would be taken twice, and is no mean of the network.
        for layer in layers:
            if (taken := student.bias_shifts.pop(layer_path(layer), None)) is not None:
                add_to_bias(student, layer, taken)
        known = activation_statistics(student)
        for done, layer in enumerate(layers, start=1):
            told = known.read_by(layer)
            if told is not None and not _reads_image(layer):
                quantizer = quantizer_of(student.program, layer.args[1])
                assert quantizer is not None
                weight = weight_of(student.program, layer)
                error = quantizer(weight).double() - original_weight(student, layer).double()
                shift, path = mean_output(layer, error, told), layer_path(layer)
                add_to_bias(student, layer, -shift)
                student.bias_shifts[path] = shift
            monitor.advance("bias_correction", done, len(layers))

    def _empirical(
        self, student: Student, layers: list[fx.Node], images: Images, monitor: Monitor
    ) -> None:
        """Layer after layer: what was corrected before is part of what is measured next."""
        config = self.config
        shown = images_in_room(
            student, images, config.most_images, config.batch_size, config.memory
        )
        layers = layers_of_images(student.program, layers)
        wanted = float_moments(student, layers, shown.batches)
        kept = dict(monitor.restore("bias_correction") or {})
        in_turn = quantized_moments_in_turn(student, layers, shown.batches, limit=shown.limit)
        for done, (layer, found) in enumerate(in_turn, start=1):
            shift = kept.setdefault(layer_path(layer), found.mean - wanted[layer].mean)
            add_to_bias(student, layer, -shift)
            monitor.advance("bias_correction", done, len(layers))
            monitor.keep("bias_correction", lambda: dict(kept), final=done == len(layers))


def _reads_image(layer: fx.Node) -> bool:
    """Whether the layer reads the image itself, past quantizers and moves."""
    source = layer.args[0]
    while isinstance(source, fx.Node) and source.op != "placeholder":
        if source.op != "call_module" and name_of(source) not in ("pad", "constant_pad_nd"):
            return False
        source = source.args[0]
    return True


def mean_output(layer: fx.Node, weight: Tensor, inputs: ClippedNormal) -> Tensor:
    """``(C_out,)`` mean output, over positions, of a layer with this weight and no bias.

    Args:
        layer: Convolution or linear.
        weight: Shaped as its weight, double.
        inputs: What is known of its input.
    """
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    means, shape = inputs.moments()[0].to(weight), list(shape_of(source))
    shape[0] = 1
    if name_of(layer) == "linear":
        return means @ weight.T
    image = means.view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
    out: Tensor = layer.target(image, weight, None, *layer.args[3:])  # type: ignore[operator]
    return out[0].flatten(1).mean(dim=1)


def weight_norm_ratio(weight: Tensor, rounded: Tensor, axis: int) -> Tensor:
    """ACIQ's ``ξ = ‖W - E[W]‖ / ‖Ŵ - E[Ŵ]‖`` of every output channel; 1 where Ŵ is constant.

    Args:
        weight: Any shape.
        rounded: Its quantized values, shaped as it.
        axis: Output-channel axis.

    Returns:
        ``(C_out,)``.

    Source:
        Banner et al. 2019, arXiv:1810.05723, bias correction.
    """
    rows = [values.double().movedim(axis, 0).flatten(1) for values in (weight, rounded)]
    before, after = ((row - row.mean(dim=1, keepdim=True)).norm(dim=1) for row in rows)
    flat = (after <= 1e-12 * after.amax()) | (before == 0)
    return torch.where(flat, 1.0, before / after.where(~flat, 1.0))


def _match_norms(student: Student, layer: fx.Node) -> None:
    """Scale weight and grid alike: the codes stay, the values have the norm of the original."""
    quantizer = quantizer_of(student.program, layer.args[1])
    assert quantizer is not None
    original = original_weight(student, layer)
    rounded = quantizer(weight_of(student.program, layer))
    scale_outputs(student, layer, weight_norm_ratio(original, rounded, weight_axis(layer)))

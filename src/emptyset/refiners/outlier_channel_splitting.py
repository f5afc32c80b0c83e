"""Outlier channel splitting: input channels with the largest weights are read twice, halved.

Paper: Zhao et al. 2019, "Improving Neural Network Quantization without Retraining using Outlier
    Channel Splitting", arXiv:1901.09504.
Idea: a few large weights make the step of all others coarse. A layer that reads such a channel
    twice, each time with half of the weight, computes the same with a smaller step. The halves are
    chosen so that their rounded values add up to the rounded whole:

        w  →  (w - s/2) / 2,  (w + s/2) / 2          s: the step

    and with m copies  ``w/m + s (k/m - (m - 1)/(2m))``, k = 0 … m - 1 (Hermite's identity).
Needs: no images. Put it behind `equalize` and before `calibrate`; where the student has ranges
    already, they are set anew. The layer gathers its input channels, so no other layer changes; in
    the file the codes are gathered, and the certificate holds as before.
Differs from source: one step per output channel, not per layer; so the channel to split is the one
    that lowers the sum of the squared steps most (``largest``: the paper's largest weight). First
    layers and grouped ones are left alone, and so is every layer whose rounding error would grow.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.graph.channel_chains import owns_its_parameters, weight_of
from emptyset.graph.edits import input_axis, quantizer_of, reorder_inputs
from emptyset.graph.operators import argument, layer_path, weight_axis, weighted_layers
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.quantizers.affine import AffineFakeQuantizer, scale_and_zero_point
from emptyset.ranges.lp_search import lp_search
from emptyset.refiners.folded_students import ranges_again, require_folded, require_untrained
from emptyset.registry import refiners

CHOICES = ("gain", "largest")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierChannelSplittingConfig:
    """Settings of outlier channel splitting.

    Attributes:
        expand_ratio: Channels that are added, as a share of a layer's input channels; at least one.
        choice: Which channel is split: ``gain``: the one that lowers the steps most (ours);
            ``largest``: the one with the largest weight (the paper).
    """

    expand_ratio: float = 0.02
    choice: str = "gain"

    def __post_init__(self) -> None:
        if not 0 < self.expand_ratio <= 1:
            raise ValueError(f"expand_ratio must be above 0, at most 1. Got {self.expand_ratio}.")
        if self.choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}. Got '{self.choice}'.")

    @classmethod
    def smallest(cls) -> "OutlierChannelSplittingConfig":
        """The same: there is nothing to shrink."""
        return cls()


@refiners.register(
    "outlier_channel_splitting",
    OutlierChannelSplittingConfig,
    sentence="Reads input channels with the largest weights twice, halved; changes no output.",
    source="Zhao et al. 2019, arXiv:1901.09504",
)
@dataclass(frozen=True, slots=True)
class OutlierChannelSplitting:
    """See the module docstring."""

    config: OutlierChannelSplittingConfig

    def needs_images(self) -> bool:
        """Whether it looks at images."""
        return False

    @torch.no_grad()
    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Split channels of ``student``, in place; float mode stays the teacher.

        Args:
            student: A prepared student that was not trained yet.
            images: Only used where the student has ranges, to set them anew.
            seed: Unused: nothing here is random.
            monitor: Hears of progress.

        Raises:
            UnsupportedModelError: If BatchNorm is not folded.
            RecipeError: If weights were trained before.
        """
        del seed
        require_folded(student, "outlier_channel_splitting")
        require_untrained(student, "outlier_channel_splitting")
        layers = [node for node in weighted_layers(student.program) if _may_split(student, node)]
        for done, layer in enumerate(layers, start=1):
            self._split(student, layer)
            monitor.advance("outlier_channel_splitting", done, len(layers))
        student.program.recompile()
        ranges_again(student, images, monitor)

    def _split(self, student: Student, layer: fx.Node) -> None:
        quantizer = quantizer_of(student.program, layer.args[1])
        assert quantizer is not None
        weight = weight_of(student.program, layer)
        rows = _as_rows(weight.double(), layer)
        added = math.ceil(self.config.expand_ratio * rows.shape[1])
        copies = split_counts(rows.abs().amax(dim=2), added, choice=self.config.choice)
        index = torch.arange(len(copies), device=copies.device).repeat_interleave(copies)
        split = split_rows(rows, copies, _steps(rows, quantizer))
        # The halves are made for the step that the halved weights have.
        split = split_rows(rows, copies, _steps(split, quantizer))
        before = _error(rows, rows, torch.ones_like(copies), quantizer)
        if _error(split, rows, copies, quantizer) >= before:
            return
        reorder_inputs(student.program, layer, index)
        _put(weight_of(student.program, layer), split, layer)


def _may_split(student: Student, layer: fx.Node) -> bool:
    """Whether it is a layer of one group with a quantized weight of its own, and no first one."""
    return (
        quantizer_of(student.program, layer.args[1]) is not None
        and (argument(layer, 6) or 1) == 1
        and student.layer_bits[layer_path(layer)].role not in ("first", "batch_norm")
        and owns_its_parameters(layer)
    )


def _as_rows(weight: Tensor, layer: fx.Node) -> Tensor:
    """``(C_out, C_in, kernel)``."""
    turned = weight.movedim((weight_axis(layer), input_axis(layer)), (0, 1))
    return turned.reshape(*turned.shape[:2], -1)


def _put(weight: Tensor, rows: Tensor, layer: fx.Node) -> None:
    turned = weight.movedim((weight_axis(layer), input_axis(layer)), (0, 1))
    turned.copy_(rows.view(turned.shape))


def split_counts(largest: Tensor, added: int, *, choice: str) -> Tensor:
    """How often each input channel is read, ``(C_in,)`` int64, ``added`` times more in all.

    Args:
        largest: ``(C_out, C_in)`` largest absolute weight of every pair of channels.
        added: Number of copies to hand out, one by one.
        choice: ``gain`` or ``largest``.
    """
    copies = torch.ones(largest.shape[1], dtype=torch.long, device=largest.device)
    now = largest.clone()
    for _ in range(added):
        if choice == "largest":
            chosen = int(now.amax(dim=0).argmax())
        else:
            top = now.topk(min(2, now.shape[1]), dim=1)
            second = top.values[:, -1] if now.shape[1] > 1 else torch.zeros_like(now[:, 0])
            columns = top.indices[:, 0]
            shrunk = top.values[:, 0] * (copies / (copies + 1))[columns]
            gain = top.values[:, 0].square() - torch.maximum(shrunk, second).square()
            chosen = int(torch.zeros_like(now[0]).index_add_(0, columns, gain).argmax())
        copies[chosen] += 1
        now[:, chosen] = largest[:, chosen] / copies[chosen]
    return copies


def split_rows(rows: Tensor, copies: Tensor, steps: Tensor) -> Tensor:
    """Weights shared between copies so that rounded copies add up to the rounded weight.

    Args:
        rows: ``(C_out, C_in, n)``.
        copies: ``(C_in,)`` how often each input channel is read.
        steps: ``(C_out,)`` size of one code [weight units].

    Returns:
        ``(C_out, copies.sum(), n)``; copies of a channel stand side by side and sum to it.

    Source:
        Zhao et al. 2019, arXiv:1901.09504, for two copies.
    """
    counts = copies.repeat_interleave(copies)
    starts = copies.cumsum(0) - copies
    number = torch.arange(len(counts), device=copies.device) - starts.repeat_interleave(copies)
    shift = (number - (counts - 1) / 2) / counts
    shared = rows.repeat_interleave(copies, dim=1) / counts[:, None]
    return shared + steps[:, None, None] * shift[:, None]


def _steps(rows: Tensor, quantizer: AffineFakeQuantizer) -> Tensor:
    return _grid(rows, quantizer)[0].double()


def _grid(rows: Tensor, quantizer: AffineFakeQuantizer) -> tuple[Tensor, Tensor]:
    """Scale and zero point that calibration will give, ``(C_out,)`` each."""
    codes = {"quant_min": quantizer.quant_min, "quant_max": quantizer.quant_max}
    if quantizer.bits == 8:
        low, high = rows.flatten(1).aminmax(dim=1)
    else:
        low, high = lp_search(rows.flatten(1), axis=0, symmetric=quantizer.symmetric, **codes)
    return scale_and_zero_point(low, high, **codes, symmetric=quantizer.symmetric)


def _error(split: Tensor, rows: Tensor, copies: Tensor, quantizer: AffineFakeQuantizer) -> float:
    """Squared difference between the weights and what their rounded copies add up to."""
    scale, zero_point = (v.double()[:, None, None] for v in _grid(split, quantizer))
    codes = ((split / scale).round() + zero_point).clamp(quantizer.quant_min, quantizer.quant_max)
    owner = torch.arange(len(copies), device=copies.device).repeat_interleave(copies)
    summed = torch.zeros_like(rows).index_add_(1, owner, (codes - zero_point) * scale)
    return float((summed - rows).square().sum())

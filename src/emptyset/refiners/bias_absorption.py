"""Bias absorption: large biases move to the next layer, so that activations span less.

Paper: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
    arXiv:1906.04721, section 4.1 (absorbing high biases).
Idea: a channel with mean β and deviation γ is nearly always above ``c = max(0, β - 3γ)``, where a
    ReLU does nothing. So c can be taken from this bias, and what the next layer made of it given
    to its bias:  ``b1 ← b1 - c``,  ``b2 ← b2 + W2 c``.
Needs: layers with BatchNorm folded and a ReLU behind; no images. Put it behind `equalize` and
    before `calibrate`; where the student has ranges already, they are set anew.
Differs from source: layers that pad with zeros are left alone unless ``padded`` is set: at the
    border the zeros would stand for c. Where several layers read the channels, all of them take
    their part.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.activation_statistics import grouped_sum, layer_statistics
from emptyset.graph.channel_chains import Chain, find_chains, weight_of
from emptyset.graph.edits import ABSORBED, OUTPUT_DEVIATION, OUTPUT_MEAN, has
from emptyset.graph.nodes import set_parameter
from emptyset.graph.operators import argument, attribute, layer_path, name_of
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.refiners.folded_students import add_to_bias, ranges_again, require_folded
from emptyset.refiners.statistics_as_values import require_batch_norm
from emptyset.registry import refiners


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasAbsorptionConfig:
    """Settings of bias absorption.

    Attributes:
        deviations: How many standard deviations below its mean a channel may lie and still not be
            clipped.
        padded: Also absorb into layers that pad with zeros, as the paper does; wrong at borders.
    """

    deviations: float = 3.0
    padded: bool = False

    def __post_init__(self) -> None:
        if not self.deviations > 0:
            raise ValueError(f"deviations must be above 0. Got {self.deviations}.")

    @classmethod
    def smallest(cls) -> "BiasAbsorptionConfig":
        """The same: there is nothing to shrink."""
        return cls()


@refiners.register(
    "bias_absorption",
    BiasAbsorptionConfig,
    sentence="Moves large biases to the next layer, so that activations span less.",
    source="Nagel et al. 2019, arXiv:1906.04721",
)
@dataclass(frozen=True, slots=True)
class BiasAbsorption:
    """See the module docstring."""

    config: BiasAbsorptionConfig

    def needs_images(self) -> bool:
        """Whether it looks at images."""
        return False

    @torch.no_grad()
    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Move biases of ``student``, in place; its originals are kept for float mode.

        Args:
            student: A prepared student.
            images: Only used where the student has ranges, to set them anew.
            seed: Unused: nothing here is random.
            monitor: Hears of progress.

        Raises:
            UnsupportedModelError: If BatchNorm is not folded, or there is none.
        """
        del seed
        require_folded(student, "bias_absorption")
        require_batch_norm(student, "bias_absorption")
        moved = False
        chains = find_chains(student.program)
        for done, chain in enumerate(chains, start=1):
            amount = self._amount(student, chain)
            if amount is not None and bool((amount > 0).any()):
                _absorb(student, chain, amount)
                moved = True
            monitor.advance("bias_absorption", done, len(chains))
        if moved:
            student.program.recompile()
            ranges_again(student, images, monitor)

    def _amount(self, student: Student, chain: Chain) -> Tensor | None:
        """``(C,)`` part of the writer's bias to move; None where the chain does not allow it."""
        told = layer_statistics(student.program, chain.writer)
        if told is None or not _only_relu(chain):
            return None
        if any(reader.padded for reader in chain.readers) and not self.config.padded:
            return None
        if any(name_of(reader.node) == "conv_transpose2d" for reader in chain.readers):
            return None  # its outputs see different parts of the kernel
        return (told.mean - self.config.deviations * told.deviation).clamp(min=0.0)


def _only_relu(chain: Chain) -> bool:
    """Whether what is added to every value behind the ReLU arrives at the readers unchanged."""
    relu, *rest = chain.between or (None,)
    if relu is None or name_of(relu) != "relu" or chain.clips:
        return False
    for node in rest:
        kind = name_of(node)
        if kind in ("relu", "leaky_relu", "prelu"):
            return False
        if kind == "avg_pool2d" and any(_sides(argument(node, 3))):
            return False  # averages with the zeros around
    return True


def _sides(padding: Any) -> list[int]:
    return list(padding) if isinstance(padding, list | tuple) else [padding or 0]


def _absorb(student: Student, chain: Chain, amount: Tensor) -> None:
    program = student.program
    told = layer_statistics(program, chain.writer)
    assert told is not None
    add_to_bias(student, chain.writer, -amount)
    _note(program, chain.writer, -amount)
    for name, values in ((OUTPUT_MEAN, told.mean - amount), (OUTPUT_DEVIATION, told.deviation)):
        set_parameter(program, f"{chain.name}.{name}", values)
    for reader in chain.readers:
        there = reader.channels >= 0
        arriving = torch.where(there, amount[reader.channels.clamp(min=0)], 0.0)
        weight, groups = weight_of(program, reader.node), argument(reader.node, 6) or 1
        given = grouped_sum(weight.double().cpu(), arriving, groups)
        add_to_bias(student, reader.node, given)
        _note(program, reader.node, given)


def _note(program: fx.GraphModule, layer: fx.Node, amount: Tensor) -> None:
    """Remember that this layer's bias is only right together with the others'."""
    path = f"{layer_path(layer)}.{ABSORBED}"
    before = attribute(program, path) if has(program, path) else 0.0
    set_parameter(program, path, amount + before)

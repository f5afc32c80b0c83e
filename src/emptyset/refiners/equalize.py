"""Cross-layer equalization: channels are rescaled between layers until their ranges match.

Paper: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
    arXiv:1906.04721, section 4.1.
Idea: for a ReLU, ``f(x / s) = f(x) / s``. Dividing channel i of one layer by s_i and multiplying
    what reads it by s_i changes no output, but can give all channels the same range.

        s_i = sqrt(r1_i / r2_i),   r1_i = max |W1[i]|,   r2_i = max |W2[:, i]|

Needs: layers that are read by layers alone, BatchNorm folded; no images. Where the student has
    ranges already, they are set anew; so put it before `calibrate`.
Differs from source: any operator that scales with its input may stand between two layers, and
    several layers may read one. ReLU6 is kept: exactly, with bounds per channel, in float mode; in
    the quantized network with one bound for all, which holds for every channel that reaches it
    (these are rescaled alike). Where none does, it becomes a ReLU, as in the paper.
    ``balance: activations`` (ours) takes the range of the channel's values as r1: with one weight
    scale per output channel, r1 of the weights has no bearing on any step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.graph.activation_statistics import Known, activation_statistics, layer_statistics
from emptyset.graph.channel_chains import (
    Chain,
    bias_of,
    columns,
    find_chains,
    inputs_per_group,
    is_dead,
    scale_columns,
    scale_rows,
    weight_of,
)
from emptyset.graph.channel_labels import channel_axis, shape_of
from emptyset.graph.clip_rescaling import RescaledClip
from emptyset.graph.edits import OUTPUT_DEVIATION, OUTPUT_MEAN
from emptyset.graph.nodes import set_parameter
from emptyset.graph.operators import weight_axis
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.refiners.folded_students import ranges_again, require_folded, require_untrained
from emptyset.registry import refiners

BALANCES = ("weights", "activations")


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualizeConfig:
    """Settings of cross-layer equalization.

    Attributes:
        balance: What is balanced against the columns of the next layer's weight: the rows of this
            layer's ``weights`` (the paper), or the ``activations`` between them, as BatchNorm
            tells them.
        sweeps: Most passes over all pairs of layers. Ours.
        tolerance: Passes end when no factor differs from 1 by more. Ours.
        deviations: With ``balance: activations``, how many standard deviations an activation
            reaches from its mean.
        clip_deviations: A channel reaches the bound of its ReLU6 if it lies within this many
            standard deviations of the mean. Ours.
    """

    balance: str = "weights"
    sweeps: int = 20
    tolerance: float = 1e-3
    deviations: float = 6.0
    clip_deviations: float = 4.0

    def __post_init__(self) -> None:
        if self.balance not in BALANCES:
            raise ValueError(f"balance must be one of {', '.join(BALANCES)}. Got '{self.balance}'.")
        if self.sweeps < 1:
            raise ValueError(f"sweeps must be at least 1. Got {self.sweeps}.")
        for name in ("tolerance", "deviations", "clip_deviations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0. Got {getattr(self, name)}.")

    @classmethod
    def smallest(cls) -> "EqualizeConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(sweeps=2)


@refiners.register(
    "equalize",
    EqualizeConfig,
    sentence="Rescales channels between layers until their ranges match; changes no output.",
    source="Nagel et al. 2019, arXiv:1906.04721",
)
@dataclass(frozen=True, slots=True)
class Equalize:
    """See the module docstring."""

    config: EqualizeConfig

    def needs_images(self) -> bool:
        """Whether it looks at images."""
        return False

    def refine(
        self, student: Student, images: Images, *, seed: int = 0, monitor: Monitor = SILENT
    ) -> None:
        """Rescale the weights of ``student``, in place; float mode stays the teacher.

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
        require_folded(student, "equalize")
        require_untrained(student, "equalize")
        balance = _Balance(student, self.config)
        for sweep in range(self.config.sweeps):
            largest = balance.sweep()
            monitor.advance("equalize", sweep + 1, self.config.sweeps)
            if largest <= self.config.tolerance:
                break
        balance.apply()
        ranges_again(student, images, monitor)


class _Balance:
    """Weights in double precision on their way to equal ranges."""

    def __init__(self, student: Student, config: EqualizeConfig) -> None:
        self._student, self._config = student, config
        program = student.program
        known = activation_statistics(student)
        self._activations: dict[fx.Node, Tensor] = {}
        self._clips: dict[fx.Node, RescaledClip] = {}
        self._chains = []
        for chain in find_chains(program):
            if config.balance == "activations":
                reach = _reach(chain, known, config.deviations)
                if reach is None:
                    continue
                self._activations[chain.writer] = reach
            for clip in chain.clips:
                self._clips[clip] = RescaledClip.of(
                    student, clip, known.get(chain.writer), config.clip_deviations
                )
            self._chains.append(chain)
        layers = {c.writer for c in self._chains} | {
            reader.node for c in self._chains for reader in c.readers
        }
        self._weights = {n: weight_of(program, n).detach().double() for n in layers}
        self._divisors = {
            c.writer: torch.ones(len(self._rows(c.writer)), dtype=torch.double)
            for c in self._chains
        }  # fmt: skip

    def _rows(self, node: fx.Node) -> Tensor:
        """``(C_out,)`` largest weight of every output channel."""
        weight = self._weights[node]
        return weight.abs().transpose(0, weight_axis(node)).flatten(1).amax(dim=1)

    def sweep(self) -> float:
        """Balance every pair once; gives how far the largest factor is from 1."""
        largest = 0.0
        for chain in self._chains:
            factors = self._factors(chain)
            for clip in chain.clips:
                factors = self._clips[clip].permitted(factors, self._divisors[chain.writer])
            weight = self._weights[chain.writer]
            self._weights[chain.writer] = scale_rows(weight, chain.writer, 1 / factors)
            self._divisors[chain.writer] *= factors
            for reader in chain.readers:
                taken = torch.where(
                    reader.channels >= 0, factors[reader.channels.clamp(min=0)], 1.0
                )
                weight = self._weights[reader.node]
                self._weights[reader.node] = scale_columns(weight, reader.node, taken)
            largest = max(largest, float((factors - 1).abs().max()))
        return largest

    def _factors(self, chain: Chain) -> Tensor:
        """``(C,)`` divisor of every channel of the writer."""
        count = len(self._divisors[chain.writer])
        if self._config.balance == "weights":
            ours, readers = self._rows(chain.writer), list(chain.readers)
        else:
            ours = self._activations[chain.writer] / self._divisors[chain.writer]
            # A row of one weight has a step of its own: its size never matters.
            readers = [r for r in chain.readers if inputs_per_group(r.node, self._of(r.node)) > 1]
        theirs = torch.zeros(count, dtype=torch.double)
        for reader in readers:
            there = reader.channels >= 0
            columns_of = columns(self._of(reader.node), reader.node).abs().amax(dim=1)
            theirs.scatter_reduce_(0, reader.channels[there], columns_of[there], "amax")
        live = ~is_dead(ours)
        if readers:
            live &= ~is_dead(theirs)
        else:
            middle = ours[live].log().mean().exp() if bool(live.any()) else torch.tensor(1.0)
            theirs = middle.square() / ours.clamp(min=1e-300)
        return torch.where(live, (ours / theirs).sqrt(), 1.0)

    def _of(self, node: fx.Node) -> Tensor:
        return self._weights[node]

    @torch.no_grad()
    def apply(self) -> None:
        """Write weights, biases, bounds and statistics."""
        program = self._student.program
        for node, weight in self._weights.items():
            weight_of(program, node).copy_(weight)
        for chain in self._chains:
            divisor, bias = self._divisors[chain.writer], bias_of(program, chain.writer)
            if bias is not None:
                bias.copy_(bias.double() / divisor)
            told = layer_statistics(program, chain.writer)
            if told is not None:
                for name, values in ((OUTPUT_MEAN, told.mean), (OUTPUT_DEVIATION, told.deviation)):
                    set_parameter(program, f"{chain.name}.{name}", values / divisor)
            for clip in chain.clips:
                self._clips[clip].write(divisor)
        program.recompile()


def _reach(chain: Chain, known: Known, deviations: float) -> Tensor | None:
    """``(C,)`` largest value of every channel as the readers see it; None where it is not known."""
    reach = torch.zeros(shape_of(chain.writer)[channel_axis(chain.writer)], dtype=torch.double)
    for reader in chain.readers:
        told = known.read_by(reader.node)
        if told is None or len(told) != len(reader.channels):
            return None
        low, high = told.reach(deviations)
        there = reader.channels >= 0
        largest = torch.maximum(-low, high)[there]
        reach.scatter_reduce_(0, reader.channels[there], largest, "amax")
    return reach

"""What each layer alone costs: the network with only this layer quantized, against the teacher.

Local errors mislead (a large error may be forgiven by what follows), so layers are ranked by what
reaches the output.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emptyset.images.image_set import Batch
from emptyset.monitor import SILENT, Monitor

if TYPE_CHECKING:
    from emptyset.graph.student import Student
    from emptyset.quantizers.affine import AffineFakeQuantizer


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table.

    Attributes:
        name: Module path.
        operator: For example ``conv2d``.
        weight_bits: Bits of one stored weight.
        activation_bits: Bits of one input value, or None where the input stays float.
        weight_range: Least and greatest weight that the codes reach [weight units].
        input_range: The same of the input [feature units], or None.
        weight_sqnr: Signal to quantization noise of the weights [dB]; None where exact.
        input_sqnr: The same of the input [dB]; None where exact or float.
        damage: KL divergence of the teacher's predictions to those of the network with only this
            layer quantized, mean over images [nats].
        changed: Share of the images whose predicted class changes, 0..1.
    """

    name: str
    operator: str
    weight_bits: int
    activation_bits: int | None
    weight_range: tuple[float, float] | None
    input_range: tuple[float, float] | None
    weight_sqnr: float | None
    input_sqnr: float | None
    damage: float
    changed: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass
class _Noise:
    """Running sums of signal and quantization noise of one quantizer."""

    signal: float = 0.0
    noise: float = 0.0
    calls: int = field(default=0)

    def add(self, before: Tensor, after: Tensor) -> None:
        before = before.detach().double()
        self.signal += float(before.square().sum())
        self.noise += float((after.detach().double() - before).square().sum())
        self.calls += 1

    def decibel(self) -> float | None:
        """10·log10(signal / noise), or None where nothing was quantized or nothing was lost."""
        if not self.calls or self.noise == 0.0 or self.signal == 0.0:
            return None
        return 10 * math.log10(self.signal / self.noise)


@contextmanager
def _listening(module: nn.Module | None) -> Iterator[_Noise]:
    """Sums up what the quantizer does to its input; the hook is gone afterwards."""
    heard = _Noise()
    if module is None:
        yield heard
        return

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        heard.add(inputs[0], output)

    handle = module.register_forward_hook(hook)
    try:
        yield heard
    finally:
        handle.remove()


@torch.no_grad()
def layer_table(
    student: "Student", batches: list[Batch], *, monitor: Monitor = SILENT
) -> list[LayerRow]:
    """Measure every layer alone.

    Args:
        student: With its ranges set; left as it was.
        batches: Images to measure on; the cost is (layers + 1) forwards of them.
        monitor: Hears of progress.

    Returns:
        One row per layer, in the network's order.
    """
    device = student.teacher.example(1).device
    with student.float_mode():
        expected = [student(batch.images.to(device)).float() for batch in batches]
    rows = []
    layers = student.layers()
    for index, layer in enumerate(layers):
        monitor.advance("layers", index, len(layers), layer.name)
        weights = student.quantizers.get(layer.weight_quantizer or "")
        inputs = student.quantizers.get(layer.input_quantizer or "")
        with student.only_layer(layer.name), _listening(weights) as w, _listening(inputs) as x:
            actual = [student(batch.images.to(device)).float() for batch in batches]
        teacher, alone = torch.cat(expected), torch.cat(actual)
        rows.append(
            LayerRow(
                name=layer.name,
                operator=layer.operator,
                weight_bits=layer.bits.weights,
                activation_bits=layer.bits.inputs,
                weight_range=range_of(weights),
                input_range=range_of(inputs),
                weight_sqnr=w.decibel(),
                input_sqnr=x.decibel(),
                damage=divergence(teacher, alone),
                changed=float((teacher.argmax(1) != alone.argmax(1)).double().mean()),
            )
        )
    monitor.advance("layers", len(layers), len(layers))
    return rows


def divergence(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Mean Kullback–Leibler divergence of the predictions [nats], 0 exactly when they are equal.

    Args:
        teacher_logits: ``(N, K)``.
        student_logits: ``(N, K)``.
    """
    teacher = teacher_logits.double().log_softmax(1)
    student = student_logits.double().log_softmax(1)
    per_image = (teacher.exp() * (teacher - student)).sum(1)
    # Rounding can leave a sum of zeros a hair below zero.
    return max(0.0, float(per_image.mean()))


def range_of(quantizer: "AffineFakeQuantizer | None") -> tuple[float, float] | None:
    """Least and greatest value that a quantizer's codes stand for, over all channels."""
    if quantizer is None:
        return None
    low, high = quantizer.low_high()
    return float(low.min()), float(high.max())

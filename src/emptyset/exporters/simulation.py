"""The program that the file must compute: the student converted to integer codes, in PyTorch.

PT2E's conversion replaces every fake quantizer by a quantize/dequantize pair and folds weights to
codes. Four exact rewritings follow: frozen BatchNorm is taken into weight scales and biases, clips
per channel that clip all channels alike become plain ones, clips before a quantizer are absorbed by
its codes, biases are rounded as the runtime holds them (it rounds them itself wherever input and
weight are quantized, whatever the plan).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.errors import NotCalibratedError
from emptyset.exporters.frozen_batch_norm import fold_frozen_batch_norm
from emptyset.exporters.integer_bias import IntegerBias, round_biases
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.edits import lower_uniform_clips
from emptyset.graph.nodes import finish
from emptyset.graph.operators import WEIGHTED, attribute, clip_bounds, is_clip, name_of
from emptyset.graph.student import Student, remove_bias_quantizers
from emptyset.graph.unfused import convert_unfused
from emptyset.quantizers.pt2e import quietly


@dataclass(frozen=True)
class Simulation:
    """What the file must compute.

    Attributes:
        program: Graph module with explicit quantize and dequantize operators; its node names are
            the file's value names.
        exported: The same as an exported program with dynamic batch, which the file is made from.
        biases: What the runtime holds, by the name of the layer's node.
        raised: Channels whose weight scale was raised for the bias, by layer path.
    """

    program: fx.GraphModule
    exported: torch.export.ExportedProgram
    biases: dict[str, IntegerBias]
    raised: dict[str, int]

    def __call__(self, images: Tensor) -> Tensor:
        """``(N, K)`` logits."""
        with torch.no_grad():
            logits: Tensor = self.program(images)
        return logits


def simulate(student: Student) -> Simulation:
    """Convert a copy of the student; the student itself stays trainable.

    Raises:
        NotCalibratedError: If a quantizer has no range yet.
    """
    unset = student.without_ranges()
    if unset:
        raise NotCalibratedError(
            f"{len(unset)} of {len(student.quantizers)} quantizers have no range yet (first: "
            f"'{unset[0]}'). Run the refiner 'calibrate' on some images before exporting."
        )
    copied = student.on_cpu()
    raised = keep_biases_in_int32(copied)
    for quantizer in copied.quantizers.values():
        quantizer.enabled = True
    remove_bias_quantizers(copied.program)
    with torch.no_grad():
        program = convert_unfused(copied.program)
    fold_frozen_batch_norm(program)
    lower_uniform_clips(program)
    absorb_clips(program)
    rounded, before = round_biases(program), _layer_names(program)
    example = copied.teacher.example()
    with quietly(), torch.no_grad():
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        exported = torch.export.export(program, (example,), dynamic_shapes=dynamic)
        # Names of the re-exported program are the file's value names.
        program = exported.module(check_guards=False)
    after = dict(zip(before, _layer_names(program), strict=True))
    biases = {after[name]: bias for name, bias in rounded.items()}
    return Simulation(program, exported, biases, raised)


def _layer_names(program: fx.GraphModule) -> list[str]:
    return [node.name for node in program.graph.nodes if name_of(node) in WEIGHTED]


def is_quantize(node: fx.Node) -> bool:
    """Whether the node turns a tensor into codes, one scale per tensor."""
    return "quantized_decomposed.quantize_per_tensor" in str(node.target)


def is_dequantize(node: fx.Node) -> bool:
    """Whether the node turns codes into a tensor."""
    return "quantized_decomposed.dequantize_per" in str(node.target)


def absorb_clips(program: fx.GraphModule) -> int:
    """Let each quantizer do the clip before it, on its codes; exact, because rounding is monotone.

        quant_min' = max(quant_min, round(low / scale) + zero_point)     quant_max' likewise

    A clip in float between a convolution and its quantizer would leave the convolution in float.
    """
    absorbed = 0
    for node in list(program.graph.nodes):
        if not is_clip(node) or len(node.users) != 1:
            continue
        reader = next(iter(node.users))
        bounds = clip_bounds(node)
        if not is_quantize(reader) or bounds is None:
            continue
        scale, zero_point, *codes = (_number(program, a) for a in reader.args[1:5])
        low, high = (
            min(max(_code(bound, scale, zero_point), codes[0]), codes[1]) for bound in bounds
        )
        reader.args = (*reader.args[:3], int(low), int(high), *reader.args[5:])
        node.replace_all_uses_with(node.args[0])
        program.graph.erase_node(node)
        absorbed += 1
    finish(program)
    return absorbed


def _code(bound: float, scale: float, zero_point: float) -> float:
    """Code of a clip's bound, as the quantizer itself computes it; infinity stays."""
    if math.isinf(bound):
        return bound
    # torch multiplies by the reciprocal in float32, and so must this.
    exact = torch.tensor(bound) * (1.0 / torch.tensor(scale))
    return float(exact.round()) + zero_point


def _number(program: fx.GraphModule, value: object) -> float:
    if isinstance(value, fx.Node):
        return float(attribute(program, str(value.target)))
    return float(value)  # type: ignore[arg-type]

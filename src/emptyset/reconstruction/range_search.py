"""Ranges of activations, searched on what a student with quantized weights computes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.ranges.estimator import RangeEstimator
from emptyset.ranges.lp_norm import LpNorm, LpNormConfig
from emptyset.reconstruction.outcome import switched
from emptyset.reconstruction.units import INPUT


def search_ranges(student: Student, images: Images, count: int, size: int) -> None:
    """Set the range of every activation but the image's, with the smallest Lp error (p = 2.4).

    Args:
        student: Its weights are quantized meanwhile, its activations are not.
        images: The first ``count`` are looked at.
        count: At least 1.
        size: Images at once.

    Source:
        BRECQ, Li et al. 2021, arXiv:2102.05426, released code.
    """
    watched = {n: q for n, q in student.quantizers.items() if q.axis is None and n != INPUT}
    factory = LpNorm(LpNormConfig())
    estimators = {
        name: factory.estimator(
            axis=None, quant_min=q.quant_min, quant_max=q.quant_max, symmetric=q.symmetric
        )
        for name, q in watched.items()
    }
    hooks = [
        quantizer.register_forward_pre_hook(_watch(estimators[name]))
        for name, quantizer in watched.items()
    ]
    try:
        with torch.no_grad(), switched(student, activations=False):
            left = count
            for batch in images.batches(size):
                student(batch.images[:left].to(student.device))
                left -= len(batch.images)
                if left <= 0:
                    break
    finally:
        for hook in hooks:
            hook.remove()
    for name, quantizer in watched.items():
        quantizer.set_range(*estimators[name].low_high())
    keep_biases_in_int32(student)


def _watch(estimator: RangeEstimator) -> Callable[[Any, tuple[Tensor]], None]:
    def watch(_: Any, inputs: tuple[Tensor]) -> None:
        estimator.update(inputs[0])

    return watch

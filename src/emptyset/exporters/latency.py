"""Time of two files in one process, taken in turn."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from emptyset.exporters.kernels import session
from emptyset.monitor import SILENT, Monitor

WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Median time of one run of each file, and their ratio.

    Attributes:
        float_ms: The float file [ms].
        quantized_ms: The quantized file [ms].
        ratio: ``float_ms / quantized_ms``; above 1: the quantized file is faster.
        batch: Images in one run.
        rounds: Timed runs of each.
    """

    float_ms: float
    quantized_ms: float
    ratio: float
    batch: int
    rounds: int


def compare(
    quantized: Path,
    float_file: Path,
    example: Tensor,
    *,
    rounds: int = 20,
    monitor: Monitor = SILENT,
) -> Latency:
    """Run both files in turn (A B A B) on the same images, in ONNX Runtime on the CPU.

    Args:
        quantized: The exported file.
        float_file: The float file of the same network.
        example: ``(N, C, H, W)`` normalised images.
        rounds: Timed runs of each; the median counts.
        monitor: Hears of progress.
    """
    files = {"float": session(float_file), "quantized": session(quantized)}
    times: dict[str, list[float]] = {name: [] for name in files}
    images = example.numpy()
    for turn in range(-WARM_UP, rounds):
        for name, running in files.items():
            feed = {running.get_inputs()[0].name: images}
            start = time.perf_counter()
            running.run(None, feed)
            if turn >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
        monitor.advance("latency", max(turn + 1, 0), rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Latency(
        medians["float"],
        medians["quantized"],
        medians["float"] / medians["quantized"],
        len(example),
        rounds,
    )

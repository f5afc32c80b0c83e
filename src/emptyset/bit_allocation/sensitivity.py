"""What each layer alone does to the output: the network with only this layer quantized.

    damage_l(bits) = 1/N Σ_n KL(teacher(x_n) ‖ student with only layer l quantized to bits(x_n))

Source: ZeroQ, Cai et al. 2020, arXiv:2001.00281, the sensitivity of its mixed precision (there on
    the distilled batch, and of weights only).
Differs from source: any images will do; a layer is its weight and its input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emptyset.errors import CaptureError, ImagesError, NotCalibratedError
from emptyset.evaluate.accuracy import require_logits
from emptyset.evaluate.agreement import divergence
from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor, State


@dataclass(frozen=True)
class Damages:
    """KL divergences of the teacher's predictions to the student's, mean over images [nat].

    Attributes:
        alone: With only this layer quantized, by layer path.
        together: With every quantizer on.
    """

    alone: dict[str, float]
    together: float


@torch.no_grad()
def damages(
    student: Student,
    names: Sequence[str],
    images: Images,
    *,
    batch_size: int,
    key: str = "damages",
    monitor: Monitor = SILENT,
) -> Damages:
    """Measure layers alone and all together, on a stream of images.

    Memory does not grow with the images. What lies before a layer is float and computed once for
    all layers, block by block.

    Args:
        student: With its ranges set; left as it was.
        names: Paths of the layers to measure alone.
        images: Normalised images.
        batch_size: Images in one forward.
        key: Name of the state that a killed run goes on from.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are no images, or the network has a single output: a probability of
            one class is always 1, whatever is quantized.
        NotCalibratedError: If a divergence is not finite.
    """
    if len(images) == 0:
        raise ImagesError("mixed_precision: there are no images. Give at least one.")
    chain = _Chain(student)
    sums = _Sums.restored(monitor.restore(key), len(names) + 1, batch_size)
    seen = 0
    for batch in images.batches(batch_size):
        seen += len(batch.images)
        if seen <= sums.done:
            continue
        sums.add(chain.divergences(names, batch.images.to(student.device)), len(batch.images))
        monitor.advance("sensitivity", seen, len(images), str(student.bits))
        monitor.keep(key, sums.state)
    monitor.keep(key, sums.state, final=True)
    means = (sums.values / sums.done).tolist()
    for name, mean in zip([*names, "all layers together"], means, strict=True):
        if not math.isfinite(mean):
            raise NotCalibratedError(
                f"{name}: the divergence from the teacher is {mean}. The network's outputs hold "
                "NaN or infinity; look for them in its weights and in the images."
            )
    return Damages(dict(zip(names, means[:-1], strict=True)), means[-1])


@dataclass
class _Sums:
    """Divergences summed over the images seen so far.

    Attributes:
        values: ``(L + 1,)`` double [nat]: every layer alone, then all together.
        done: Number of images.
        batch_size: Images in one forward.
    """

    values: Tensor
    done: int
    batch_size: int

    def add(self, divergences: Tensor, count: int) -> None:
        self.values = self.values + divergences
        self.done += count

    def state(self) -> State:
        return {"values": self.values, "done": torch.tensor([self.done, self.batch_size])}

    @staticmethod
    def restored(state: State | None, length: int, batch_size: int) -> "_Sums":
        # Other batches end elsewhere: what was kept would count some images twice.
        if state is None or int(state["done"][1]) != batch_size:
            return _Sums(torch.zeros(length, dtype=torch.double), 0, batch_size)
        return _Sums(state["values"], int(state["done"][0]), batch_size)


class _Chain:
    """A student as a chain of blocks, so that a layer is run from its own block on."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._steps: list[nn.Module] = [student.program]
        self._starts: dict[str, int] = {}
        try:
            blocks = find_blocks(student)
        except CaptureError:
            # No chain (the image is read in two places, say): every layer from the image on.
            blocks = []
        if blocks:
            self._steps = [block.module for block in blocks]
            for index, block in enumerate(blocks):
                for name in block.quantizers:
                    self._starts.setdefault(name, index)
        # One that is called twice is listed twice: its damage is that of all its calls.
        self._quantizers: dict[str, list[str]] = {}
        for layer in student.layers():
            own = self._quantizers.setdefault(layer.name, [])
            names = (layer.weight_quantizer, layer.input_quantizer)
            own.extend(name for name in names if name is not None and name not in own)

    def divergences(self, names: Sequence[str], images: Tensor) -> Tensor:
        """Sum over the images: one value per layer alone, then all together; ``(L + 1,)``."""
        inputs = [images.contiguous(memory_format=torch.channels_last)]
        with self._student.float_mode():
            for step in self._steps:
                inputs.append(step(inputs[-1]))
        teacher = inputs.pop()
        require_logits(teacher, len(images))
        if teacher.shape[1] < 2:
            raise ImagesError(
                "mixed_precision: the network has one output, and the probability of a single "
                "class is always 1: nothing can be measured. It works for classifiers."
            )
        sums = []
        for name in names:
            quantizers = self._quantizers[name]
            start = min((self._starts.get(q, 0) for q in quantizers), default=0)
            with self._student.only_quantizers(quantizers):
                sums.append(divergence(teacher, self._run(inputs[start], start)).sum())
        sums.append(divergence(teacher, self._run(inputs[0], 0)).sum())
        return torch.stack(sums).cpu()

    def _run(self, x: Tensor, start: int) -> Tensor:
        for step in self._steps[start:]:
            x = step(x)
        return x

"""What the corrections that need no training ask of a student, and leave behind."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.errors import NotCalibratedError, RecipeError, UnsupportedModelError
from emptyset.graph.channel_chains import bias_of, owns_its_parameters, scale_rows, weight_of
from emptyset.graph.edits import add_bias, quantizer_of
from emptyset.graph.memory import bytes_per_image, largest_batch
from emptyset.graph.operators import argument, one_scale_per_output, parameter_of, weighted_layers
from emptyset.graph.originals import FIXED
from emptyset.graph.room import bytes_held, room_left
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import Monitor
from emptyset.registry import refiners

# Their own, originals, quantized ones.
_COPIES_OF_WEIGHTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringConfig:
    """Settings of corrections that measure a student on images.

    Attributes:
        most_images: Images that are used, at most; a few activations of all of them are held at
            once (256 for a ResNet-50: some 1.5 GB). Ours.
        batch_size: Images in one forward; fewer where that does not fit into memory. Ours.
        memory: What all of this process may take [GB]; activations that do not fit go to files
            without a name in the folder TMPDIR (else /var/tmp), with the same result. On a GPU
            they take what is free of its memory.
    """

    most_images: int = 256
    batch_size: int = 64
    memory: float = 8.0

    def __post_init__(self) -> None:
        for name in ("most_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Got {getattr(self, name)}.")
        if not self.memory > 0:
            raise ValueError(f"memory must be above 0. Got {self.memory}.")


def require_folded(student: Student, method: str) -> None:
    """Refuse a student whose BatchNorms stand apart.

    Raises:
        UnsupportedModelError: If they do.
    """
    if student.batch_norm != "fold":
        raise UnsupportedModelError(
            f"{method}: works on layers that BatchNorm was folded into, and this student has "
            f"batch_norm '{student.batch_norm}'. Prepare it with batch_norm 'fold'."
        )


def require_untrained(student: Student, method: str) -> None:
    """Refuse a student whose weights or biases were changed already.

    Raises:
        RecipeError: If they were.
    """
    changed = [path for path in student.originals if not path.endswith(FIXED)]
    if changed:
        raise RecipeError(
            f"{method}: this student's weights or biases were changed before (first: "
            f"'{changed[0]}'), and what was learnt would not survive. Put {method} first."
        )


def ranges_again(student: Student, images: Images, monitor: Monitor) -> None:
    """Set the ranges of a student that had them, for they hold no longer."""
    if student.without_ranges():
        return
    entry = refiners.get("calibrate")
    values = "images" if len(images) else "batch_norm"
    calibrate = entry.make(entry.config(activation_values=values))
    calibrate.refine(student, images, seed=0, monitor=monitor)


def keep_original(student: Student, path: str, value: Tensor) -> None:
    """Remember a parameter as it was, unless an earlier refiner's original is known."""
    student.originals.setdefault(path, value.detach().clone())


def require_ranges(student: Student, method: str) -> None:
    """Refuse a student that was not calibrated.

    Raises:
        NotCalibratedError: If a quantizer has no range.
    """
    if student.without_ranges():
        raise NotCalibratedError(
            f"{method}: corrects what quantizing does, and this student has no ranges yet. Run the "
            "refiner 'calibrate' first."
        )


def corrected_layers(student: Student) -> list[fx.Node]:
    """Layers with a quantized weight of their own, in order of execution.

    One that is called twice is left out: what corrects one call is wrong for the other.
    """
    return [
        node
        for node in weighted_layers(student.program)
        if quantizer_of(student.program, node.args[1]) is not None
        and one_scale_per_output(node)
        and owns_its_parameters(node)
    ]


def original_weight(student: Student, layer: fx.Node) -> Tensor:
    """The layer's float weight, as the teacher has it (rescaled where it was equalized)."""
    parameter = parameter_of(layer.args[1])
    assert parameter is not None
    weight = student.originals.get(str(parameter.target), weight_of(student.program, layer))
    return weight.detach()


@torch.no_grad()
def scale_outputs(student: Student, layer: fx.Node, factor: Tensor) -> None:
    """Multiply a layer's weight and its grid alike: codes and learnt rounding stay.

    Args:
        student: Calibrated; float mode keeps the old weight.
        layer: Convolution or linear of its program, with a quantized weight.
        factor: ``(C_out,)``, above 0.
    """
    weight = weight_of(student.program, layer)
    quantizer, parameter = quantizer_of(student.program, layer.args[1]), parameter_of(layer.args[1])
    assert quantizer is not None
    assert parameter is not None
    factor = factor.to(weight.device)
    keep_original(student, str(parameter.target), weight)
    quantizer.stretch(factor.float())
    learnt = quantizer.learnt_values()
    weight.copy_(scale_rows(weight.double(), layer, factor) if learnt is None else learnt)


@torch.no_grad()
def add_to_bias(student: Student, layer: fx.Node, amount: Tensor) -> None:
    """Change a layer's bias, which it gets where it has none; float mode keeps the old one.

    Args:
        student: Prepared.
        layer: Convolution or linear of its program.
        amount: ``(C_out,)`` [units of the output].
    """
    bias = bias_of(student.program, layer)
    if bias is None:
        add_bias(student.program, layer, integer_biases=student.integer_biases)
        student.program.recompile()
        bias = bias_of(student.program, layer)
    parameter = parameter_of(argument(layer, 2))
    assert bias is not None
    assert parameter is not None
    keep_original(student, str(parameter.target), bias)
    bias.copy_(bias.double() + amount.to(bias.device))


@dataclass(frozen=True)
class ImagesInRoom:
    """The first images of a set, and what there is for activations of all of them.

    Attributes:
        batches: ``(N, C, H, W)`` each, in memory.
        limit: Bytes of activations that may be held in memory.
    """

    batches: list[Tensor]
    limit: int


def images_in_room(
    student: Student, images: Images, most: int, batch_size: int, memory: float
) -> ImagesInRoom:
    """The first images, in batches that go through a student within the memory allowed.

    Args:
        student: What they will go through.
        images: A set.
        most: Images, at most.
        batch_size: Images in a batch; fewer where a forward would take more than half the memory.
        memory: For all of the process [GB].
    """
    size = largest_batch(student, memory / 2, at_most=batch_size)
    batches, left = [], most
    for batch in images.batches(size):
        batches.append(batch.images[:left])
        left -= len(batch.images)
        if left <= 0:
            break
    weights = sum(p.numel() * p.element_size() for p in student.program.parameters())
    limit = room_left(
        student.device,
        memory,
        images=bytes_held(images) or sum(batch.nbytes for batch in batches),
        working=_COPIES_OF_WEIGHTS * weights + size * bytes_per_image(student),
    )
    return ImagesInRoom(batches, limit)

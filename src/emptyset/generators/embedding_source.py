"""Where the embeddings of classes come from: the teacher's last layer, read as class centres."""

import copy

import torch
from torch import Tensor

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.teachers.last_layer import feature_vectors, outputs_of
from emptyset.teachers.teacher import Teacher

# Rounding between a layer and the logits, relative to the largest of them: a mean over pixels.
_ROUNDING = 1e-4


def class_centres(teacher: Teacher, classes: int) -> Tensor | None:
    """One row per class of the layer that gives the logits, ``(C, D)``, or None.

    Of all linear layers and convolutions of one pixel (MobileNetV2 of pytorchcv ends with one) with
    as many outputs as there are classes it is the last one that is called, if what it gives,
    averaged over its places, is what the network gives.
    """
    # A copy: in training mode a forward would change the statistics that BatchNorm stores.
    module = copy.deepcopy(teacher.module).eval()
    layers = [layer for layer in module.modules() if outputs_of(layer) == classes]
    example = teacher.example(2)
    # Zeros would hide a difference: a network without biases answers them with zeros everywhere.
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), recorded_inputs(layers) as recorded:
        logits = module(noise.to(example))
        if not recorded:
            return None
        position, given = recorded[-1]
        last = layers[position]
        # Asked again: what follows may have written over its first answer.
        answer = feature_vectors(last(given), last)
    gap = _ROUNDING * logits.abs().max()
    if answer.shape != logits.shape or not bool(((answer - logits).abs() <= gap).all()):
        return None
    weight = last.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


def required_centres(teacher: Teacher, classes: int, width: int | None, method: str) -> Tensor:
    """The class centres, where a method is initialised with them.

    Args:
        teacher: The classifier.
        classes: C.
        width: D that was asked for; None: as wide as they are.
        method: Named in messages.

    Raises:
        UnsupportedModelError: If no layer gives the logits, or its rows have another width.
    """
    centres = class_centres(teacher, classes)
    if centres is None:
        raise UnsupportedModelError(
            f"{method} starts from the rows of the classifier's last layer, but {teacher.name} "
            f"({type(teacher.module).__name__}) has no linear layer or 1x1 convolution whose "
            f"{classes} outputs are its logits. Set embeddings to random."
        )
    if width is not None and width != centres.shape[1]:
        raise UnsupportedModelError(
            f"{method}: embeddings of length {width} are asked for, but the classifier of "
            f"{teacher.name} has rows of {centres.shape[1]}. Leave embedding_width out, or set "
            "embeddings to random."
        )
    return centres

"""Where the embeddings of classes come from: the teacher's last layer, read as class centres."""

import copy

import torch
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.recorded_inputs import recorded_inputs
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
    layers = [layer for layer in module.modules() if _has_rows(layer, classes)]
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
        answer = _over_places(last(given), last)
    gap = _ROUNDING * logits.abs().max()
    if answer.shape != logits.shape or not bool(((answer - logits).abs() <= gap).all()):
        return None
    weight = last.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


def _has_rows(layer: nn.Module, classes: int) -> bool:
    """Whether each output of a layer is one product with its input, and there are C."""
    if isinstance(layer, nn.Linear):
        return layer.out_features == classes
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.groups == 1
        and layer.out_channels == classes
    )


def _over_places(answer: Tensor, layer: nn.Module) -> Tensor:
    """``(N, C)``: the mean over the pixels of a map, or over tokens."""
    if isinstance(layer, nn.Conv2d):
        return answer.flatten(2).mean(dim=2)
    return answer if answer.dim() == 2 else answer.flatten(1, -2).mean(dim=1)


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

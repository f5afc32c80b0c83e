"""Where the embeddings of classes come from: the teacher's last layer, read as class centres."""

from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.teachers.teacher import Teacher


def class_centres(teacher: Teacher, classes: int) -> Tensor | None:
    """One row per class of the layer that gives the logits, ``(C, D)``, or None.

    The last linear layer, or the last convolution of one pixel (MobileNetV2 of pytorchcv ends with
    one), where it has as many outputs as there are classes.
    """
    layers = [
        module
        for module in teacher.module.modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
    ]
    fitting = [layer.weight for layer in layers if layer.weight.shape[0] == classes]
    return fitting[-1].detach().flatten(1) if fitting else None


def required_centres(teacher: Teacher, classes: int, width: int | None, method: str) -> Tensor:
    """The class centres, where a method is initialised with them.

    Args:
        teacher: The classifier.
        classes: C.
        width: D that was asked for; None: as wide as they are.
        method: Named in messages.

    Raises:
        UnsupportedModelError: If there are none, or they have another width.
    """
    centres = class_centres(teacher, classes)
    if centres is None:
        raise UnsupportedModelError(
            f"{method} starts from the rows of the classifier's last layer, but {teacher.name} "
            f"({type(teacher.module).__name__}) has no linear layer or 1x1 convolution with "
            f"{classes} outputs. Set embeddings to random."
        )
    if width is not None and width != centres.shape[1]:
        raise UnsupportedModelError(
            f"{method}: embeddings of length {width} are asked for, but the classifier of "
            f"{teacher.name} has rows of {centres.shape[1]}. Leave embedding_width out, or set "
            "embeddings to random."
        )
    return centres

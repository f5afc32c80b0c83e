"""``torchvision:NAME`` classifiers of torchvision, with its preprocessing and class names.

``torchvision:resnet50`` takes the package's default weights, ``torchvision:resnet50.IMAGENET1K_V1``
names them. Torchvision checks what it downloads against the hash in the file's name.
"""

from typing import Any

from emptyset.errors import UnknownNameError
from emptyset.registry import nearest
from emptyset.teachers.assemble import assemble
from emptyset.teachers.outside import building, import_extra
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, Teacher
from emptyset.teachers.weights import put_weights

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def load(request: TeacherRequest) -> Teacher:
    """See ``load_teacher``."""
    request.refuse_model()
    torchvision = import_extra("torchvision", extra="models", needed_by=request.full_name)
    name, _, tag = request.name.partition(".")
    known = _find(torchvision.models, name, tag)
    with building(request):
        module = torchvision.models.get_model(
            name,
            weights=known if request.wants_hub_weights else None,
            **({"progress": False} if request.wants_hub_weights else {}),
            **_as_trained(name),
            **request.model_args,
        )
    provenance = {
        "source": "torchvision",
        "name": f"{name}.{known.name}",
        "version": torchvision.__version__,
        "hub": known.url,
    }
    provenance |= put_weights(request, module, request.weights)
    _drop_auxiliary_heads(name, module)
    return assemble(
        request,
        module,
        known_input=_input(known.transforms()),
        known_classes=known.meta.get("categories"),
        provenance=provenance,
    )


def _find(models: Any, name: str, tag: str) -> Any:
    """The entry of torchvision's weights enum; unknown names: name the nearest."""
    names = models.list_models(module=models)
    if name not in names:
        raise UnknownNameError(
            f"torchvision has no classifier called '{name}'.{nearest(name, names)} "
            f"Known: {', '.join(names)}."
        )
    weights = models.get_model_weights(name)
    tags = [entry.name for entry in weights]
    if tag and tag not in tags:
        raise UnknownNameError(
            f"torchvision has no weights called '{name}.{tag}'.{nearest(tag, tags)} "
            f"Known for {name}: {', '.join(tags)}."
        )
    return weights[tag] if tag else weights.DEFAULT


def _as_trained(name: str) -> dict[str, Any]:
    """GoogLeNet and Inception: what torchvision sets when it loads its own weights for them."""
    if name in WITH_AUXILIARY_HEADS:
        return {"init_weights": False, "transform_input": True}
    return {}


def _drop_auxiliary_heads(name: str, module: Any) -> None:
    """Heads that only training calls: their BatchNorm layers would never see an image."""
    if name in WITH_AUXILIARY_HEADS:
        module.aux_logits = False
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, head):
                setattr(module, head, None)


def _input(transforms: Any) -> InputSpec:
    crop = list(transforms.crop_size) * 2
    resize = list(transforms.resize_size)
    return InputSpec(
        shape=(3, crop[0], crop[1]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=resize[0] if len(resize) == 1 else None,
        interpolation="bicubic" if transforms.interpolation.value == "bicubic" else "bilinear",
    )

"""``pytorchcv:NAME`` classifiers of pytorchcv.

The package does not store how images are to be prepared. What is used here are the values of its
authors' training scripts, by the ending of the name: CIFAR and SVHN share one set, all others are
prepared as ImageNet. Some converted weights were trained otherwise: say so with ``--mean`` and
``--std``.

Source: github.com/osmr/imgclsmob, pytorch/datasets (read 2026; the values only).
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from emptyset.errors import UnknownNameError
from emptyset.registry import nearest
from emptyset.teachers.assemble import assemble
from emptyset.teachers.outside import building, import_extra
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, Teacher
from emptyset.teachers.weights import load_into, put_weights, read_weights

SMALL_IMAGES = ("_cifar10", "_cifar100", "_svhn")
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPPED_SHARE = 0.875


def load(request: TeacherRequest) -> Teacher:
    """See ``load_teacher``."""
    request.refuse_model()
    provider = import_extra("pytorchcv.model_provider", extra="models", needed_by=request.full_name)
    names = sorted(provider._models)
    if request.name.lower() not in names:
        raise UnknownNameError(
            f"pytorchcv has no network called '{request.name}'.{nearest(request.name, names)} All "
            "names: python -c 'import pytorchcv.model_provider as p; print(sorted(p._models))'"
        )
    with building(request):
        module = provider.get_model(request.name, pretrained=False, **request.model_args)
    provenance: dict[str, Any] = {
        "source": "pytorchcv",
        "name": request.name,
        "preprocessing": "that of its authors' scripts, by the name of the data set",
    }
    if request.wants_hub_weights:
        provenance |= _download(request, module)
    else:
        provenance |= put_weights(request, module, request.weights)
    return assemble(
        request, module, known_input=_input(request.name, module), provenance=provenance
    )


def _download(request: TeacherRequest, module: nn.Module) -> dict[str, Any]:
    """Fetch the package's own weights (it checks their hash) and put them in.

    Its own loader would open them with ``weights_only=False``. Like that loader, this one leaves
    out what the file holds beyond the network.
    """
    store = import_extra(
        "pytorchcv.models.common.model_store", extra="models", needed_by=request.full_name
    )
    with building(request):
        path = Path(store.get_model_file(request.name.lower()))
    stored = read_weights(path)
    own = module.state_dict()
    kept = {key: value for key, value in stored.tensors.items() if key in own}
    load_into(module, replace(stored, tensors=kept))
    return {"weights": "source", "file": path.name, "file_sha256": stored.sha256}


def _input(name: str, module: nn.Module) -> InputSpec:
    height, width = getattr(module, "in_size", (224, 224))
    if name.lower().endswith(SMALL_IMAGES):
        return InputSpec((3, height, width), CIFAR_MEAN, CIFAR_STD)
    resize = math.ceil(min(height, width) / CROPPED_SHARE)
    return InputSpec((3, height, width), IMAGENET_MEAN, IMAGENET_STD, resize=resize)

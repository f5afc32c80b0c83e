"""``embedded:`` the teachers that ship with emptyset, and the digits they were measured on."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from emptyset.errors import TeacherError, UnknownNameError
from emptyset.registry import nearest
from emptyset.teachers.assemble import assemble
from emptyset.teachers.digits_networks import DigitsMobileNet, DigitsResNet
from emptyset.teachers.outside import building
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, Teacher
from emptyset.teachers.weights import put_weights

ASSETS = Path(__file__).resolve().parent.parent / "assets"
NETWORKS: dict[str, type[nn.Module]] = {
    "digits-mobilenet": DigitsMobileNet,
    "digits-resnet": DigitsResNet,
}


def embedded_names() -> list[str]:
    """Names of the teachers that ship with emptyset."""
    return sorted(NETWORKS)


def held_out_images_path() -> Path:
    """The 797 labelled digits that neither teacher was trained on (npz).

    ``images`` uint8 ``(N, 16, 16, 1)``, ``labels`` ``(N,)``, ``indices`` ``(N,)`` in
    scikit-learn's order.
    """
    return ASSETS / "digits_held_out.npz"


def train_images_path() -> Path:
    """The 1,000 labelled digits that both teachers were trained on (npz), as above."""
    return ASSETS / "digits_train.npz"


def card(name: str) -> dict[str, Any]:
    """What is known about an embedded teacher: data, licence, split, accuracy, training.

    Raises:
        UnknownNameError: No embedded teacher has this name.
    """
    if name not in NETWORKS:
        raise UnknownNameError(
            f"No embedded teacher is called '{name}'.{nearest(name, embedded_names())} "
            f"Known: {', '.join(embedded_names())}."
        )
    data: dict[str, Any] = json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def load(request: TeacherRequest) -> Teacher:
    """See ``load_teacher``."""
    known = card(request.name)
    request.refuse_model()
    if request.model_args:
        raise TeacherError(
            f"{request.full_name}: embedded teachers take no --model-args. Leave it out."
        )
    with building(request):
        module = NETWORKS[request.name]()
    shipped = ASSETS / f"{request.name}.safetensors"
    provenance = {"source": "embedded", "name": request.name, "licence": known["licence"]}
    provenance |= put_weights(request, module, request.weights or shipped)
    if request.weights is None:
        # The same on every machine, wherever the package lies.
        provenance["file"] = shipped.name
    spec = InputSpec(
        shape=tuple(known["input"]["shape"]),
        mean=tuple(known["input"]["mean"]),
        std=tuple(known["input"]["std"]),
    )
    return assemble(
        request, module, known_input=spec, known_classes=known["classes"], provenance=provenance
    )

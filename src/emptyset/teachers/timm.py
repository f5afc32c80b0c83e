"""``timm:NAME`` classifiers of the package timm, with its preprocessing and class names."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from emptyset.errors import UnknownNameError
from emptyset.registry import nearest
from emptyset.teachers.assemble import assemble
from emptyset.teachers.outside import building, import_extra
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, Teacher
from emptyset.teachers.weights import put_weights


def load(request: TeacherRequest) -> Teacher:
    """See ``load_teacher``."""
    request.refuse_model()
    timm = import_extra("timm", extra="models", needed_by=request.full_name)
    import_extra("timm.data", extra="models", needed_by=request.full_name)
    _check_name(timm, request)
    with building(request):
        module = timm.create_model(
            request.name, pretrained=request.wants_hub_weights, **request.model_args
        )
    config = module.pretrained_cfg
    provenance = {
        "source": "timm",
        "name": request.name,
        "version": timm.__version__,
        "hub": config.get("hf_hub_id") or config.get("url"),
        "licence": config.get("license"),
    }
    provenance |= put_weights(request, module, request.weights)
    return assemble(
        request,
        module,
        known_input=_input(timm.data, module),
        known_classes=_class_names(timm.data, module, config),
        provenance=provenance,
    )


def _check_name(timm: Any, request: TeacherRequest) -> None:
    """Unknown architecture or tag: name the nearest."""
    name = request.name
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UnknownNameError(
            f"timm has no network called '{architecture}'."
            f"{nearest(architecture, timm.list_models())} All names: "
            "python -c 'import timm; print(timm.list_models())'"
        )
    tagged = [known for known in timm.list_pretrained() if known.startswith(f"{architecture}.")]
    if tag and name not in tagged:
        raise UnknownNameError(
            f"timm has no weights called '{name}'.{nearest(name, tagged)} "
            f"Known for {architecture}: {', '.join(tagged) or 'none'}."
        )


def _input(data: Any, module: nn.Module) -> InputSpec:
    config = data.resolve_model_data_config(module)
    shape = tuple(config["input_size"])
    # "squash" resizes both sides to the input at once; every other mode crops the centre.
    squash = config["crop_mode"] == "squash"
    return InputSpec(
        shape=(shape[0], shape[1], shape[2]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=None if squash else int(min(shape[1:]) / config["crop_pct"]),
        interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
    )


def _class_names(data: Any, module: nn.Module, config: Mapping[str, Any]) -> list[str] | None:
    """Names that timm itself carries, for networks of ImageNet."""
    subset = data.infer_imagenet_subset(config)
    if subset is None or config.get("num_classes") != getattr(module, "num_classes", None):
        return None
    info = data.ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(info.num_classes())]

"""``hf:NAME-or-folder`` image classifiers of the package transformers."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emptyset.errors import TeacherError
from emptyset.teachers.assemble import assemble
from emptyset.teachers.outside import building, import_extra
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import InputSpec, Teacher
from emptyset.teachers.weights import put_weights

# What transformers writes where nobody gave names.
PLACEHOLDER = "LABEL_"
BICUBIC = 3  # PIL's number, as stored in preprocessor_config.json


class LogitsOnly(nn.Module):
    """Returns the logits of a transformers classifier as a plain tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` normalised images to ``(N, K)`` logits."""
        return self.network(pixel_values=images).logits  # type: ignore[no-any-return]


def load(request: TeacherRequest) -> Teacher:
    """See ``load_teacher``."""
    request.refuse_model()
    if not request.name:
        raise TeacherError("hf: needs a name on the hub or a folder, for example hf:my_folder.")
    transformers = import_extra("transformers", extra="models", needed_by=request.full_name)
    with building(request), quiet(transformers), _explained(request):
        config = transformers.AutoConfig.from_pretrained(request.name, **request.model_args)
        auto = transformers.AutoModelForImageClassification
        if request.wants_hub_weights:
            # The float32 is asked for: the stored precision would be the default.
            network, info = auto.from_pretrained(
                request.name, config=config, dtype="float32", output_loading_info=True
            )
            _refuse_new_weights(request, info)
        else:
            network = auto.from_config(config)
    provenance: dict[str, Any] = {
        "source": "transformers",
        "name": request.name,
        "version": transformers.__version__,
    }
    provenance |= put_weights(request, network, request.weights)
    known = None
    if None in (request.input_shape, request.mean, request.std):
        known = _input(transformers, request, config)
    return assemble(
        request,
        LogitsOnly(network),
        known_input=known,
        known_classes=_class_names(config),
        provenance=provenance,
    )


def _refuse_new_weights(request: TeacherRequest, info: Mapping[str, Any]) -> None:
    """A checkpoint without its classifier would be filled up with random numbers."""
    missing = sorted(map(str, info.get("missing_keys", [])))
    if missing:
        raise TeacherError(
            f"{request.full_name}: {len(missing)} weights are not in the checkpoint "
            f"({', '.join(missing[:3])}). It is probably a backbone without a classifier: take "
            "one that was trained to classify images."
        )


def _class_names(config: Any) -> list[str] | None:
    labels = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    names = [labels[index] for index in sorted(labels)]
    return None if any(name.startswith(PLACEHOLDER) for name in names) else names


def _input(transformers: Any, request: TeacherRequest, config: Any) -> InputSpec | None:
    """Read preprocessor_config.json; None where there is none.

    The processor's own class is not built: it needs torchvision, and runs where ours runs.
    """
    base = import_extra(
        "transformers.image_processing_base", extra="models", needed_by=request.full_name
    )
    try:
        with quiet(transformers):
            stored, _ = base.ImageProcessingMixin.get_image_processor_dict(request.name)
    except (OSError, ValueError):
        return None
    return input_from_processor(stored, channels=getattr(config, "num_channels", 3))


def input_from_processor(stored: Mapping[str, Any], *, channels: int) -> InputSpec | None:
    """What a stored image processor does, as mean and std over pixels in 0..1.

        value = (255 · factor · pixel − offset − mean) / std

    Args:
        stored: Content of ``preprocessor_config.json``.
        channels: C.

    Returns:
        The input, or None where the size is not stored as a square or a rectangle.
    """
    size, crop = _sides(stored.get("size")), _sides(stored.get("crop_size"))
    resized = stored.get("do_resize", True)
    shape = crop if crop is not None and stored.get("do_center_crop", False) else size
    if shape is None:
        return None
    resize = None
    if shape is crop and resized and size is not None:
        resize = min(size)
    elif "crop_pct" in stored and resized and stored["crop_pct"] is not None and shape[0] < 384:
        # ConvNeXT's rule: below 384 pixels resize to size / crop_pct, then crop.
        resize = int(min(shape) / stored["crop_pct"])
    factor = 255 * stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 255
    offset = 1.0 if stored.get("rescale_offset") else 0.0
    mean, std = [0.0] * channels, [1.0] * channels
    if stored.get("do_normalize", True):
        mean, std = list(stored.get("image_mean", mean)), list(stored.get("image_std", std))
    return InputSpec(
        shape=(channels, *shape),
        mean=tuple(_round((value + offset) / factor) for value in mean),
        std=tuple(_round(value / factor) for value in std),
        resize=resize,
        interpolation="bicubic" if stored.get("resample") == BICUBIC else "bilinear",
    )


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width from the forms that transformers has used over the years."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None


def _round(value: float) -> float:
    """Undo what 255 · (1 / 255) leaves behind in the last digits."""
    return round(value, 12) if math.isfinite(value) else value


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and notices; as before afterwards."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _explained(request: TeacherRequest) -> Iterator[None]:
    """A folder that is not there reads as a hub name to transformers; say both."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, TeacherError):
            raise
        if Path(request.name).is_dir():
            raise TeacherError(
                f"{request.full_name}: this folder is no transformers image classifier "
                f"({reason}). Expected config.json and model.safetensors, as save_pretrained "
                "writes them."
            ) from error
        raise TeacherError(
            f"{request.full_name}: no such folder here, and the hub did not give it ({reason}). "
            "Without a network, fetch the repository on another machine and name its folder: "
            "hf:FOLDER; `--weights FILE` replaces the weights alone."
        ) from error

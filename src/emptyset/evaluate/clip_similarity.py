"""How alike images are to CLIP, which knows nothing of the teacher.

Source: DFFG, Leng et al., BMVC 2023, compares optimisers by the CLIP similarity between images. The
    poster does not say how it is computed; here it is the mean cosine of the image embeddings over
    all pairs, and over the pairs of each class. CLIP: Radford et al. 2021, arXiv:2103.00020.
Needs: the extra ``diffusion`` (transformers), and a CLIP model on the hub or in a folder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emptyset.errors import ImagesError, TeacherError
from emptyset.evaluate.diversity import classes_of, similarity_within
from emptyset.images.image_source import Images
from emptyset.losses.similarity import pairwise_similarity
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.huggingface import input_from_processor, quiet
from emptyset.teachers.outside import import_extra
from emptyset.teachers.teacher import InputSpec

EXTRA = "diffusion"
# Those of OpenAI's models, for a folder without preprocessor_config.json.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipSimilarity:
    """Cosines of CLIP's image embeddings, −1..1; lower is more diverse.

    Attributes:
        similarity: Mean over all pairs of images.
        similarity_within_class: Mean over the pairs of each class, then over the classes with two
            images or more; None without targets, or where there is no such class.
        count: Number of images.
        model: What CLIP it was.
    """

    similarity: float
    similarity_within_class: float | None
    count: int
    model: str

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


class ClipEncoder:
    """The image side of a CLIP model, loaded once."""

    def __init__(self, name: str, network: nn.Module, spec: InputSpec) -> None:
        self.name = name
        self._network = network
        self._spec = spec

    @staticmethod
    def load(name: str | Path, *, device: str | torch.device = "cpu") -> "ClipEncoder":
        """A CLIP model by its name on the hub, for example ``openai/clip-vit-base-patch32``.

        Args:
            name: On the hub, or a folder that ``save_pretrained`` wrote.
            device: Where to compute.

        Raises:
            MissingExtraError: If ``emptyset[diffusion]`` is not installed.
            TeacherError: If the model cannot be had, or is no CLIP model.
        """
        asked = f"CLIP similarity with {name}"
        transformers = import_extra("transformers", extra=EXTRA, needed_by=asked)
        processing = import_extra(
            "transformers.image_processing_base", extra=EXTRA, needed_by=asked
        )
        # The random numbers that weights start from are nobody else's.
        with quiet(transformers), torch.random.fork_rng(devices=[]):
            try:
                config = _of_images(transformers.AutoConfig.from_pretrained(str(name)))
                network, info = transformers.CLIPVisionModelWithProjection.from_pretrained(
                    str(name), config=config, dtype="float32", output_loading_info=True
                )
            except Exception as error:
                raise _unreachable(str(name), error) from error
            try:
                stored, _ = processing.ImageProcessingMixin.get_image_processor_dict(str(name))
            except (OSError, ValueError):
                stored = {}
        if missing := sorted(map(str, info.get("missing_keys", []))):
            raise TeacherError(
                f"{name}: {len(missing)} weights of a CLIP image encoder are not in it "
                f"({', '.join(missing[:3])}). Name a CLIP model, for example "
                "openai/clip-vit-base-patch32."
            )
        network = network.requires_grad_(False).eval().to(device)
        return ClipEncoder(str(name), network, _input(stored, network.config.image_size))

    @torch.no_grad()
    def embeddings(self, pixels_NCHW: Tensor) -> Tensor:
        """``(N, E)`` image embeddings, float32 on the CPU.

        Args:
            pixels_NCHW: ``(N, C, H, W)`` pixels in 0..1; one channel counts as grey.
        """
        shown = self._spec.normalise(_resized(_three_channels(pixels_NCHW), self._spec))
        device = next(self._network.parameters()).device
        found: Tensor = self._network(pixel_values=shown.to(device)).image_embeds
        return found.float().cpu()


def clip_similarity(
    images: Images,
    spec: InputSpec,
    encoder: ClipEncoder,
    *,
    batch_size: int = 64,
    monitor: Monitor = SILENT,
) -> ClipSimilarity:
    """Compare images in the embeddings of a CLIP model; only the embeddings are kept of each.

    Args:
        images: In the teacher's normalised units.
        spec: The teacher's input, which turns them back into pixels.
        encoder: From ``ClipEncoder.load``.
        batch_size: Images at a time.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are fewer than 2 images.
    """
    if len(images) < 2:
        raise ImagesError(f"Similarity between images needs at least 2. Got {len(images)}.")
    embeddings, targets = [], []
    for batch in images.batches(batch_size):
        embeddings.append(encoder.embeddings(spec.pixels(batch.images.cpu())).double())
        if batch.targets is not None:
            targets.append(classes_of(batch.targets))
        monitor.advance("CLIP similarity", sum(map(len, embeddings)), len(images))
    everything = torch.cat(embeddings)
    return ClipSimilarity(
        similarity=pairwise_similarity(everything).item(),
        similarity_within_class=similarity_within(everything, torch.cat(targets))
        if targets
        else None,
        count=len(everything),
        model=encoder.name,
    )


def _of_images(config: Any) -> Any:
    """The configuration of the image side alone."""
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(f"it is of the kind '{config.model_type}'")
    if config.model_type == "clip_vision_model":
        return config
    # The width of the embeddings is a matter of both sides; the image side's own may be a default.
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def _unreachable(name: str, error: Exception) -> TeacherError:
    reason = str(error).partition("\n")[0]
    if Path(name).is_dir():
        return TeacherError(
            f"{name}: this folder is no CLIP model ({reason}). Expected config.json and "
            "model.safetensors, as save_pretrained writes them."
        )
    return TeacherError(
        f"{name}: no such folder here, and the hub did not give this CLIP model ({reason}). "
        "Without a network, fetch the repository on another machine and name its folder."
    )


def _input(stored: Mapping[str, Any], side: int) -> InputSpec:
    """What the stored processor does; OpenAI's preprocessing where nothing is stored."""
    known = input_from_processor(stored, channels=3) if stored else None
    if known is not None:
        return known
    return InputSpec((3, side, side), _MEAN, _STD, resize=side, interpolation="bicubic")


def _three_channels(pixels_NCHW: Tensor) -> Tensor:
    channels = pixels_NCHW.shape[1]
    if channels not in (1, 3):
        raise ImagesError(f"CLIP sees images of 1 or 3 channels. Got {channels}.")
    return pixels_NCHW.expand(-1, 3, -1, -1)


def _resized(pixels_NCHW: Tensor, spec: InputSpec) -> Tensor:
    """Shorter side to ``spec.resize``, then the centre; straight to the size where it is None."""
    height, width = spec.shape[1:]
    size = (height, width)
    if spec.resize is not None:
        rows, columns = pixels_NCHW.shape[2:]
        factor = max(spec.resize / min(rows, columns), height / rows, width / columns)
        size = (max(height, round(rows * factor)), max(width, round(columns * factor)))
    resized = nn.functional.interpolate(
        pixels_NCHW, size, mode=spec.interpolation, antialias=True, align_corners=False
    ).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, :, top : top + height, left : left + width]

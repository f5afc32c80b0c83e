"""DSG: diverse images by leaving the statistics some slack.

Papers: Zhang et al., "Diversifying Sample Generation for Accurate Data-Free Quantization", CVPR
    2021, arXiv:2103.01049 (slack distribution alignment, layerwise sample enhancement); Qin et al.,
    TPAMI 2023 (adds sample correlation inhibition). Settings of the released PTQ code.
Idea: statistics of images need not be nearer to the stored ones than those of Gaussian noise mostly
    are; every image cares most for one layer of its own; images are to be no more alike than noise.
Needs: a teacher with BatchNorm layers; at least 2 classes, unless ``class_weight`` is 0.
Differs from source:
    * The layer of an image has the weight 2, as the paper has it. The code doubles the gap before
      it is squared, so 4, and counts 20 layers whatever the network (``legacy``).
    * Sample correlation has a gradient and does not depend on the arbitrary signs of eigenvectors
      (``losses/sample_correlation.py``).
    * The slack is computed from Gaussian images; the files that the code reads were not released.
    * Ours: how many Gaussian images; the size prior is the mean norm of the images.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.config import JOINT, PlateauConfig
from emptyset.inversion.labels import random_labels
from emptyset.inversion.method import BatchStart, Group, Method, Seen
from emptyset.inversion.resampling import draw_roll, rolled
from emptyset.inversion.setting_checks import (
    require_not_negative,
    require_positive,
    require_share,
    require_use_of_classes,
)
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.sample_correlation import sample_correlation, spectrum
from emptyset.losses.slack_alignment import layer_enhancement, slack_alignment, slack_of
from emptyset.losses.total_variation import total_variation
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

_LEGACY_FACTOR, _LEGACY_LAYERS = 4.0, 20


@dataclass(frozen=True, kw_only=True)
class DsgConfig(PlateauConfig):
    """Settings of DSG. Defaults are those of the released PTQ code unless marked "ours".

    Attributes:
        learning_rate: First step size [standardised pixel units per step].
        slack_quantile: ε, share of the channels whose noise stays within the slack; 0: no slack.
        slack_images: Gaussian images that the slack is computed from. Ours.
        statistics: Whose are matched: those of every image (``sample``), of the ``batch``, or of
            all batches together (``joint``).
        layer_enhancement: Every image cares twice as much for one layer.
        correlation_weight: Of sample correlation inhibition, divided by the number of layers. 1 is
            the extended version's; the released PTQ code has none (0).
        spectrum_weight: Of the eigenvalues in it.
        class_weight: Of the cross-entropy (the code adds it twice); 0: no classes.
        smoothness_weight: Of the total variation of the batch.
        norm_weight: Of the mean norm of the images.
        roll: Greatest random shift [pixels]; for images of 32 x 32 rather 2.
        legacy: Layer enhancement as in the released code: factor 4, always 20 layers.
        classes: Make images of these classes only; empty: of all.
    """

    statistics_known: ClassVar[tuple[str, ...]] = ("sample", "batch", JOINT)
    class_weights: ClassVar[tuple[str, ...]] = ("class_weight",)

    steps: int = 500
    learning_rate: float = 0.9
    plateau_patience: int = 260
    batch_size: int = 40
    slack_quantile: float = 0.9
    slack_images: int = 128
    statistics: str = "sample"
    layer_enhancement: bool = True
    correlation_weight: float = 1.0
    spectrum_weight: float = 1e-4
    class_weight: float = 2.0
    smoothness_weight: float = 0.01
    norm_weight: float = 0.01
    roll: int = 30
    legacy: bool = False
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_use_of_classes(self)
        require_positive(self, "learning_rate", "slack_images")
        require_share(self, "slack_quantile")
        require_not_negative(self, "correlation_weight", "spectrum_weight")
        require_not_negative(self, "class_weight", "smoothness_weight", "norm_weight", "roll")

    @classmethod
    def smallest(cls) -> "DsgConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, batch_size=4, slack_images=4, roll=2)


@synthesizers.register(
    "dsg",
    DsgConfig,
    sentence="Leaves the statistics some slack, and each image a layer of its own, for variety.",
    source="DSG, Zhang et al. 2021, arXiv:2103.01049; Qin et al., TPAMI 2023",
)
@dataclass(frozen=True)
class Dsg(InversionSynthesizer):
    """See the module docstring."""

    config: DsgConfig

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        height, width = teacher.input.shape[1:]
        return Method(
            name="dsg",
            objective=self.objective,
            groups=(Group(Adam(), config.plateau(config.learning_rate)),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "dsg", config),
            context=self.context,
            context_follows=False,
            draw=lambda _step, generator, _count: draw_roll(
                height, width, most=config.roll, flip=0.0, generator=generator
            ),
            augment=lambda images, drawn: rolled(images, drawn["roll_rows"], drawn["roll_columns"]),
            low_pass=config.low_pass,
            joint_steps=config.turn,
        )

    def context(self, start: BatchStart) -> dict[str, Tensor]:
        """Slack and spectrum of Gaussian images, and which image cares for which layer."""
        config = self.config
        noise = torch.randn(config.slack_images, *start.shape[1:], generator=start.generator)
        layers = start.look(noise).layers
        if not layers:
            raise UnsupportedModelError("dsg: the teacher calls none of its BatchNorm layers.")
        slack = slack_of(layers, config.slack_quantile)
        if not config.slack_quantile:
            slack = torch.zeros_like(slack)
        weights = torch.ones(start.shape[0], len(layers))
        if config.layer_enhancement:
            factor = _LEGACY_FACTOR if config.legacy else 2.0
            period = _LEGACY_LAYERS if config.legacy else None
            weights = layer_enhancement(*weights.shape, factor=factor, period=period)
        values, vectors = spectrum(torch.randn(start.shape, generator=start.generator))
        return {"slack": slack, "weights": weights, "values": values, "vectors": vectors}

    def objective(self, seen: Seen) -> Tensor:
        """Loss = L_SDA with LSE + SCI / L + 2 CE + 0.01 TV + 0.01 norm, with their weights."""
        config, drawn = self.config, seen.drawn
        gaps = slack_alignment(seen.layers, drawn["slack"], per_image=config.statistics == "sample")
        loss = (drawn["weights"] * gaps).sum(dim=1).mean()
        if config.correlation_weight:
            correlation = sample_correlation(
                seen.images,
                drawn["values"],
                drawn["vectors"],
                value_weight=config.spectrum_weight,
            )
            loss = loss + config.correlation_weight / len(seen.layers) * correlation
        if config.class_weight and seen.targets is not None:
            classes = nn.functional.cross_entropy(seen.logits, seen.targets)
            loss = loss + config.class_weight * classes
        if config.smoothness_weight:
            loss = loss + config.smoothness_weight * total_variation(seen.images)
        if config.norm_weight:
            loss = loss + config.norm_weight * pixel_norm_per_image(seen.images).mean()
        return loss

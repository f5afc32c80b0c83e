"""MixMix: several teachers, and images pasted into images.

Paper: Li et al., "MixMix: All You Need for Data-Free Compression Are Feature and Data Mixing", ICCV
    2021, arXiv:2011.09899. The body of the paper could not be read, and no code was released.
Idea: an image that several networks find familiar is not made for the quirks of one (feature
    mixing); an image with a second one pasted into it has labels that are right by construction
    (data mixing).
Needs: teachers of one image size, with BatchNorm layers (unless ``statistics_weight`` is 0), and
    with the same classes, at least 2 (unless ``class_weight`` is 0). The first one is the teacher
    itself; ``teachers`` names further ones, or in Python ``MixMix(config, teachers=[...])`` gives
    them. With the teacher alone only data mixing remains.
Reconstructed (ours): everything but the two ideas. Losses, optimiser, shifts and clipping are those
    of DeepInversion at full size; the teacher takes part in every step, the others in turn at
    random; the weight of a label is the share of the area that its image really has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from emptyset.inversion.batch_norm_needed import require_batch_norm
from emptyset.inversion.config import InversionConfig
from emptyset.inversion.labels import class_count, random_labels
from emptyset.inversion.method import Draw, Finish, Group, Method, Seen
from emptyset.inversion.other_networks import (
    Network,
    named_network,
    network_section,
    require_same_task,
)
from emptyset.inversion.resampling import draw_pasted_boxes, draw_roll, rolled, sampled
from emptyset.inversion.schedules import Cosine
from emptyset.inversion.setting_checks import (
    require_an_aim,
    require_choice,
    require_not_negative,
    require_positive,
    require_share,
    require_use_of_classes,
)
from emptyset.inversion.standard_units import standard_units
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam, Clipped
from emptyset.losses.batch_norm_statistics import deep_inversion_statistics
from emptyset.losses.layer_statistics import LayerStatistics
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.total_variation import total_variation
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class MixMixConfig(InversionConfig):
    """Settings of MixMix. None is known; defaults are a labelled reconstruction.

    Attributes:
        teachers: Further teachers, each by its name, for example ``timm:resnet50``, or by a section
            with the keys of a recipe's ``teacher`` (``{name: file:weights.safetensors, model:
            module:function, input: 3x32x32, mean: [...], std: [...]}``).
        teachers_per_step: Teachers that take part in a step, the first one included.
        learning_rate: Greatest step size [standardised pixel units per step].
        betas: Decay of Adam's moments.
        warm_up: Steps of linear growth.
        statistics_weight: Of the BatchNorm statistics of each teacher.
        first_layer_multiplier: Additional weight of the first BatchNorm layer.
        class_weight: Of the cross-entropy of each teacher; 0: no classes.
        smoothness_weight: Of the total variation of the batch.
        norm_weight: Of the mean norm of the images.
        mix_probability: Of pasting in a step.
        smallest_box: Least share of the area that is pasted over.
        largest_box: Greatest share.
        store: ``mixed`` images with the probabilities of both labels, or ``plain`` ones.
        roll: Greatest random shift [pixels].
        flip: Probability of mirroring.
        clip: Keep pixels between black and white.
        classes: Make images of these classes only; empty: of all.
    """

    class_weights: ClassVar[tuple[str, ...]] = ("class_weight",)

    teachers: tuple[Network, ...] = ()
    teachers_per_step: int = 3
    steps: int = 2000
    learning_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    warm_up: int = 100
    statistics_weight: float = 0.01
    first_layer_multiplier: float = 10.0
    class_weight: float = 1.0
    smoothness_weight: float = 1e-4
    norm_weight: float = 1e-5
    mix_probability: float = 0.5
    smallest_box: float = 0.1
    largest_box: float = 0.5
    store: str = "mixed"
    roll: int = 30
    flip: float = 0.5
    clip: bool = True
    batch_size: int = 84
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "teachers_per_step", "learning_rate")
        require_positive(self, "smallest_box", "largest_box")
        require_not_negative(self, "warm_up", "statistics_weight", "first_layer_multiplier")
        require_not_negative(self, "class_weight", "smoothness_weight", "norm_weight", "roll")
        require_an_aim(self, "statistics_weight", "class_weight")
        require_use_of_classes(self)
        for number, network in enumerate(self.teachers):
            network_section(network, "teachers", number)
        require_share(self, "mix_probability", "smallest_box", "largest_box", "flip")
        require_choice(self, "store", ("mixed", "plain"))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"'betas' must lie in 0..1, below 1. Got {self.betas}.")
        if self.smallest_box > self.largest_box:
            raise ValueError(
                f"'smallest_box' must not exceed 'largest_box'. Got {self.smallest_box} and "
                f"{self.largest_box}."
            )

    @classmethod
    def smallest(cls) -> "MixMixConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, warm_up=1, roll=2, batch_size=4)


@synthesizers.register(
    "mixmix",
    MixMixConfig,
    sentence="Pastes images into images, and asks several teachers (mostly a reconstruction).",
    source="MixMix, Li et al. 2021, arXiv:2011.09899; all but the two ideas reconstructed",
)
@dataclass(frozen=True)
class MixMix(InversionSynthesizer):
    """See the module docstring."""

    config: MixMixConfig
    teachers: Sequence[Teacher] = ()

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        named = (named_network(one, "teachers", n) for n, one in enumerate(config.teachers))
        others = (*self.teachers, *named)
        classes = class_count(teacher, "mixmix") if config.uses_classes else 0
        for other in others:
            if config.statistics_weight:
                require_batch_norm(other, "mixmix")
            require_same_task(teacher, other, "mixmix", classes=config.uses_classes)
        rule = Adam(config.betas)
        units = standard_units(teacher.input)
        update = Clipped(rule, *units.pixel_range()) if config.clip else rule
        return Method(
            name="mixmix",
            objective=self.objective,
            groups=(Group(update, Cosine(config.learning_rate, warm_up=config.warm_up)),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "mixmix", config),
            draw=self._draw(teacher.input.shape, len(others)),
            augment=lambda images, drawn: pasted(
                rolled(images, drawn["roll_rows"], drawn["roll_columns"]), drawn
            ),
            finish=self._finish(classes) if config.store == "mixed" else None,
            low_pass=config.low_pass,
            joint_steps=config.turn,
            others=others,
            needs_batch_norm=config.statistics_weight > 0,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Loss = mean over teachers (CE of both labels + BNS) + TV + norm, with their weights."""
        config = self.config
        views = [(seen.logits, seen.layers), *((o.logits, o.layers) for o in seen.others)]
        loss = torch.stack([self._term(logits, layers, seen) for logits, layers in views]).mean()
        if config.smoothness_weight:
            loss = loss + config.smoothness_weight * total_variation(seen.images)
        return loss + config.norm_weight * pixel_norm_per_image(seen.images).mean()

    def _term(self, logits: Tensor, layers: Sequence[LayerStatistics], seen: Seen) -> Tensor:
        """What one teacher has to say."""
        config = self.config
        term = logits.new_zeros(())
        if config.statistics_weight:
            multiplier = config.first_layer_multiplier
            statistics = deep_inversion_statistics(layers, first_multiplier=multiplier)
            term = config.statistics_weight * statistics
        if config.class_weight and seen.targets is not None:
            both = mixed_labels(seen.targets, seen.drawn, logits.shape[1])
            term = term + config.class_weight * nn.functional.cross_entropy(logits, both)
        return term

    def _boxes(
        self, count: int, height: int, width: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        areas = (self.config.smallest_box, self.config.largest_box)
        drawn = draw_pasted_boxes(count, height, width, areas=areas, generator=generator)
        return drawn | {"partner": torch.randperm(count, generator=generator)}

    def _draw(self, shape: tuple[int, int, int], others: int) -> Draw:
        config = self.config
        height, width = shape[1:]

        def draw(_step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
            drawn = draw_roll(
                height, width, most=config.roll, flip=config.flip, generator=generator
            )
            drawn |= self._boxes(count, height, width, generator)
            if torch.rand((), generator=generator) >= config.mix_probability:
                drawn["paste_mask"].zero_()
            chosen = torch.randperm(others, generator=generator)[: config.teachers_per_step - 1]
            return drawn | {f"other.{n}": torch.ones(()) for n in sorted(chosen.tolist())}

        return draw

    def _finish(self, classes: int) -> Finish:
        def finish(
            images: Tensor, targets: Tensor | None, generator: torch.Generator
        ) -> tuple[Tensor, Tensor | None]:
            drawn = self._boxes(len(images), images.shape[2], images.shape[3], generator)
            drawn = {name: value.to(images.device) for name, value in drawn.items()}
            labels = None if targets is None else mixed_labels(targets, drawn, classes)
            return pasted(images, drawn), labels

        return finish


def pasted(images_NCHW: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Every image with its partner, made smaller, pasted into a box.

        x̂ = (1 − A) · x + A · resize(x[partner], box)

    Args:
        images_NCHW: ``(N, C, H, W)``.
        drawn: ``partner`` and what ``draw_pasted_boxes`` gives.
    """
    small = sampled(images_NCHW[drawn["partner"]], drawn["paste_rows"], drawn["paste_columns"])
    return torch.lerp(images_NCHW, small, drawn["paste_mask"].expand_as(small))


def mixed_labels(labels_N: Tensor, drawn: Mapping[str, Tensor], classes: int) -> Tensor:
    """Probabilities ``(N, K)``: each of the two labels by the share of the area of its image."""
    share = drawn["paste_mask"].mean(dim=(1, 2, 3))[:, None]
    own = nn.functional.one_hot(labels_N, classes).to(share.dtype)
    return (1 - share) * own + share * own[drawn["partner"]]

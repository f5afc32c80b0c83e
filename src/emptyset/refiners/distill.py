"""Trains the student to say what the teacher says, on images alone.

Two presets, one loop over an image source:

``learned`` (default): ours. Steps of weights (per channel) and activations start from calibration
    (Lp search below 8 bits) and are learnt with the weights; divergence from the teacher only,
    Adam, cosine decay, images shifted and mirrored.
``published``: the protocol of IntraQ, Zhong et al. 2022, arXiv:2111.09136, which DFFG shares and
    HAST, Li et al. 2023, arXiv:2303.13826, extends: cross entropy and ``20 T²`` times the
    divergence, T = 20, SGD with Nesterov momentum, learning rate in stairs, weights on their
    min/max, activations on a moving average that is fixed after the first 4 of 151 epochs. Prepare
    the student with plan ``every_layer`` and ``batch_norm: frozen``.
HAST: ``published`` with ``cross_entropy: 0``, ``feature_attention: 1000``, ``perturbation: 0.01``
    and ``learning_rate: 1.0e-5`` (CIFAR-10).

Differs from source: activation ranges come from the training images (augmented, as they are
    trained on), not from a generator's; their moving average is corrected once (``legacy``: again
    at every update, as released); the last state is the result, never the best on real images.
"""

from dataclasses import dataclass

from emptyset.errors import NotCalibratedError
from emptyset.graph.student import Student
from emptyset.images.image_source import Images, ImageSource
from emptyset.images.mixing import MIXINGS
from emptyset.losses.distillation import REDUCTIONS
from emptyset.monitor import SILENT, Monitor
from emptyset.quantizers.bits import Bits
from emptyset.quantizers.learned_step import MASKS
from emptyset.refiners.training import EPOCHS, RANGE_EPOCHS, Course, Training
from emptyset.refiners.training_parts import AUGMENTATIONS, source_of
from emptyset.registry import refiners

PRESETS = ("learned", "published")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """Settings of distillation; ``null`` stands for the preset's own (learned | published).

    Attributes:
        preset: ``learned`` or ``published``.
        steps: Updates and range updates in all (by bits, w5: 250, w4: 500, w3 and below: 1,000 |
            30,200); milestones and range updates scale with it.
        learning_rate: Of weights, biases and BatchNorm (by bits: 1e-4, 2e-4, 3e-4 | 1e-4; IntraQ on
            ImageNet: 1e-6).
        step_learning_rate: Of the steps, relative [1 / update] (ten times ``learning_rate``).
        batch_size: Images in one update. Ours; IntraQ: 256 on CIFAR, 16 on ImageNet.
        temperature: T (4 | 20).
        distillation: Weight of the divergence, which holds T² already (1 | 20).
        kd_reduction: ``batch_mean``, or ``mean`` as GDFQ, Qimera and AIT: weaker by the number of
            classes.
        cross_entropy: Weight of the cross entropy with the images' labels (0 | 1).
        feature_attention: HAST's λ, weight of the feature alignment in residual units.
        perturbation: HAST's ε: every image is also shown after one sign step of this size up the
            loss [normalised units]; 0 for none.
        mask: Where gradients pass a learned quantizer: ``code``, ``value`` or ``none``.
        augmentation: ``shift`` (by up to an eighth), ``crop`` (resized, half of the area at least)
            or ``none`` (shift | crop).
        flip: Probability of mirroring an image; 0 for digits and letters.
        mixing: ``mixup`` or ``cutmix``: every image is mixed with another one and shown to teacher
            and student alike, labels in the same shares; ``none`` (none).
        weight_decay: Of everything but steps (0 | 1e-4).
        legacy: Published only: activation ranges by the released compounding moving average.
    """

    preset: str = "learned"
    steps: int | None = None
    learning_rate: float | None = None
    step_learning_rate: float | None = None
    batch_size: int = 128
    temperature: float | None = None
    distillation: float | None = None
    kd_reduction: str = "batch_mean"
    cross_entropy: float | None = None
    feature_attention: float = 0.0
    perturbation: float = 0.0
    mask: str = "code"
    augmentation: str | None = None
    flip: float = 0.5
    mixing: str = "none"
    weight_decay: float | None = None
    legacy: bool = False

    def __post_init__(self) -> None:
        for name, known in {
            "preset": PRESETS, "kd_reduction": REDUCTIONS, "mask": MASKS,
            "augmentation": (None, *AUGMENTATIONS),
            "mixing": MIXINGS,
        }.items():  # fmt: skip
            if getattr(self, name) not in known:
                choices = ", ".join(choice for choice in known if choice)
                raise ValueError(f"{name} must be one of {choices}. Got '{getattr(self, name)}'.")
        for name in ("steps", "learning_rate", "temperature", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0. Got {value}.")
        for name in (
            "step_learning_rate", "distillation", "cross_entropy", "feature_attention",
            "perturbation", "weight_decay",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative. Got {value}.")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be from 0 to 1. Got {self.flip}.")
        if self.legacy and self.preset != "published":
            raise ValueError("legacy is what the published preset's code did; set that preset.")

    @classmethod
    def smallest(cls) -> "DistillConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(steps=3, batch_size=4)

    def course(self, bits: Bits) -> Course:
        """What these settings come to for a student of these bits."""
        learned, fewest = self.preset == "learned", min(bits.weights, bits.activations)
        steps, rate = (250, 1e-4) if fewest >= 5 else (500, 2e-4) if fewest == 4 else (1000, 3e-4)
        if not learned:
            steps, rate = 200 * EPOCHS, 1e-4
        steps, rate = self.steps or steps, self.learning_rate or rate
        return Course(
            learned=learned,
            steps=steps,
            range_steps=0 if learned else max(1, round(steps * RANGE_EPOCHS / EPOCHS)),
            learning_rate=rate,
            batch_size=self.batch_size,
            step_learning_rate=_given(self.step_learning_rate, 10 * rate),
            temperature=self.temperature or (4.0 if learned else 20.0),
            distillation=_given(self.distillation, 1.0 if learned else 20.0),
            kd_reduction=self.kd_reduction,
            cross_entropy=_given(self.cross_entropy, 0.0 if learned else 1.0),
            feature_attention=self.feature_attention,
            perturbation=self.perturbation,
            mask=self.mask,
            augmentation=self.augmentation or ("shift" if learned else "crop"),
            flip=self.flip,
            mixing=self.mixing,
            weight_decay=_given(self.weight_decay, 0.0 if learned else 1e-4),
            legacy=self.legacy,
        )


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


@refiners.register(
    "distill",
    DistillConfig,
    sentence="Trains weights and steps to say what the teacher says, on images alone.",
    source="ours; preset published: IntraQ, Zhong et al. 2022, and HAST, Li et al. 2023",
)
@dataclass(frozen=True, slots=True)
class Distill:
    """See the module docstring."""

    config: DistillConfig

    def refine(
        self,
        student: Student,
        images: Images | ImageSource,
        *,
        seed: int = 0,
        monitor: Monitor = SILENT,
    ) -> None:
        """Train ``student``, in place; its originals are kept for float mode.

        Args:
            student: A prepared student; calibrated here where it is not.
            images: Images, all held in memory while training; or any image source.
            seed: Of the order and the augmentation.
            monitor: Hears of progress; keeps what was learnt, so that a killed run goes on.

        Raises:
            ImagesError: If there are no images, or labels are needed and missing.
            NotCalibratedError: If the student has no ranges and the source cannot give images.
            CollapseError: If training diverged; the student is then as it was.
        """
        course = self.config.course(student.bits)
        if course.learned and not all(bool(q.calibrated) for q in student.quantizers.values()):
            if not isinstance(images, Images):
                raise NotCalibratedError(
                    "distill: the student has no ranges yet, and they cannot be set from an image "
                    "source. Run the refiner 'calibrate' on some images first."
                )
            entry = refiners.get("calibrate")
            entry.make(entry.config()).refine(student, images, seed=seed, monitor=monitor)
        Training(student, source_of(images, seed), course, seed).run(monitor)

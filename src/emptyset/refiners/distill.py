"""Trains the student to say what the teacher says, on images alone.

The images are a stored set, or come from a source that is trained beside the student (`sources/`):
then both learn in one loop. Presets:

``learned`` (default): ours. Steps of weights (per channel) and activations start from calibration
    (Lp search below 8 bits) and are learnt with the weights; divergence from the teacher only,
    Adam, cosine decay, images shifted and mirrored. Beside a source the first quarter of the
    batches is for the source alone; then its images set the ranges. One that asks the student (zaq,
    adasg, adadfq) cannot learn before it, so ranges come from its first images: better run
    `calibrate` on other images before.
``published``: the protocol of IntraQ, Zhong et al. 2022, arXiv:2111.09136, which DFFG shares and
    HAST, Li et al. 2023, arXiv:2303.13826, extends: cross entropy and ``20 T²`` times the
    divergence, T = 20, SGD with Nesterov momentum, learning rate in stairs, weights on their
    min/max, activations on a moving average that is fixed after the first 4 of 151 epochs. Prepare
    the student with plan ``every_layer`` and ``batch_norm: frozen``. At w4a4 the divergence of this
    strength destroyed a ResNet-20 for CIFAR-10 within ten updates, in a plain loop too; with
    ``kd_reduction: mean``, a tenth of it, the student trains. ImageNet: ``batch_size: 16``,
    ``learning_rate: 1.0e-6`` and ``milestones: [0.6623]`` (100 of 151 epochs).
``gdfq``: the loop of GDFQ, Xu et al. 2020, arXiv:2003.03603, which Qimera and AutoReCon share: 400
    epochs of 200 batches, in the first 4 (ImageNet: 50, ``warm_up: 0.125``) only the generator
    learns; cross entropy and ``T²`` times the divergence in its weak form. Plan and BatchNorm as
    for ``published``.
``zaq``: the student's side of ZAQ, Liu et al. 2021, arXiv:2103.15263: distance of the logits and of
    the feature maps' relations; activation ranges are the extremes of all that was trained on. With
    Qimera's source on base zaq set ``cross_entropy: 0.1``.
``ait``: the student's side of AIT, Choi et al. 2022, arXiv:2203.17008, for the sources gdfq, qimera
    and autorecon: GDFQ's loop with the divergence alone, no weight decay and gradient inundation
    (``refiners/inundation.py``). ImageNet: ``warm_up: 0.125`` and the ``crossing`` told there.
``adasg``, ``adadfq``: the student's side of AdaSG, Qian et al. 2023, arXiv:2302.09572, and AdaDFQ,
    arXiv:2303.06869: GDFQ's loop with the flatness of the logits' difference alone, batches of 16.
    ImageNet: ``temperature: 5`` and ``warm_up: 0.125`` (ResNet-50 at 3 bits 0.25); ResNet-18 and
    MobileNetV2 ``learning_rate: 1.0e-5`` and ``milestones: [0.875]``; ResNet-50 ``[0.5, 0.75]``,
    AdaDFQ at 3 bits ``[0.375, 0.75]``, at 5 ``[0.875]``; the source's alike.
``texq``: after TexQ, Chen et al. 2023: images are mixed, labels are not, so what the teacher says
    of a mixed image is the target. Reconstruction: the paper was not seen; schedule and temperature
    are GDFQ's, the divergence is as strong as AdaDFQ's loss.
HAST: ``published`` with ``cross_entropy: 0``, ``feature_attention: 1000``, ``perturbation: 0.01``
    and ``learning_rate: 1.0e-5`` (CIFAR-10; the synthesizer ``hast`` tells those for other data).

Differs from source: with stored images activation ranges come from these (augmented, as they are
    trained on); ``ranges_from: gdfq`` takes a generator's, as IntraQ and HAST released it. Beside a
    source they are tracked in the last 4 epochs of the warm-up (``legacy``: the first 4 of all), of
    a short schedule in 20 batches of it at least (160), and in all of it where the source asks the
    student. Their moving average is corrected once (``legacy``: again at every update, as
    released). Ranges hold 0, as integer kernels need; a channel's released grid need not. ZAQ's
    student keeps the teacher's BatchNorm statistics, and learns at 1e-3 (``legacy``: its BatchNorm
    is in training mode while it learns, at 0.1, as released). The last state is the result, never
    the best on real images; beside a source last and best are recorded, the best by agreement with
    the teacher on images it does not learn from.
"""

from dataclasses import dataclass
from fractions import Fraction

from emptyset.errors import NotCalibratedError
from emptyset.graph.student import Student
from emptyset.images.image_source import Images, ImageSource, LiveSource
from emptyset.images.mixing import IMAGES_ONLY, MIXINGS
from emptyset.inversion.compilation import PRECISIONS
from emptyset.losses.distillation import REDUCTIONS
from emptyset.monitor import SILENT, Monitor
from emptyset.quantizers.bits import Bits
from emptyset.quantizers.learned_step import MASKS
from emptyset.refiners.best_student import KEPT, Evaluate
from emptyset.refiners.course import (
    EXTREMES,
    GENERATOR,
    IMAGES,
    RANGES_FROM,
    Course,
    before_updates,
    preset_named,
)
from emptyset.refiners.generator_ranges import follow_generator
from emptyset.refiners.inundation import INUNDATIONS
from emptyset.refiners.published_rates import note_compounding_ranges, note_folded_rates
from emptyset.refiners.source_warm_up import NotesAlone, note_doubts, require_fit, warmed_up
from emptyset.refiners.training import Training
from emptyset.refiners.training_parts import AUGMENTATIONS, source_of
from emptyset.registry import refiners

# Of the learned preset beside a source; ours, not tuned.
SOURCE_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """Settings of distillation; ``null`` stands for the preset's own (learned | published | gdfq |
    zaq). Presets ait, adasg, adadfq and texq are as gdfq, but for what is said.

    Attributes:
        preset: ``learned``, ``published``, ``gdfq``, ``zaq``, ``ait``, ``adasg``, ``adadfq`` or
            ``texq``.
        steps: Batches in all: warm-up, range updates, updates, and those that only a source learns
            from (by bits, w5: 250, w4: 500, w3 and below: 1,000; beside a source four times as many
            | 30,200 | 80,000 | 108,000); warm-up, milestones and range updates scale with it.
        warm_up: Share of the steps before the student is updated (0, beside a source 0.25 | 4 of
            151 epochs | 4 of 400 | 0).
        ranges_from: With stored images, what activation ranges follow in the warm-up: the
            ``images``, or those of a fresh generator of ``gdfq`` that learns meanwhile, in batches
            of 16, as released by IntraQ and HAST. Not with learned and zaq.
        milestones: Shares of the steps after which the learning rate falls to a tenth (cosine | 20,
            40 and 60 of 151 epochs | 100, 200 and 300 of 400 | 100 and 200 of 300).
        learning_rate: Of weights, biases and BatchNorm (by bits: 1e-4, 2e-4, 3e-4 | 1e-4 | 1e-4 |
            1e-3, of ``legacy`` 0.1; IntraQ and GDFQ on ImageNet: 1e-6).
        step_learning_rate: Of the steps, relative [1 / update] (ten times ``learning_rate``).
        batch_size: Images in one update (128 | 256 | 200 | 256; adasg and adadfq: 16, texq: 128;
            Qimera's paper: 64; IntraQ, GDFQ and TexQ on ImageNet: 16).
        temperature: T (4 | 20 | 20 | -).
        distillation: Weight of the divergence, which holds T² already (1 | 20 | 1 | 0; adasg and
            adadfq: 0).
        kd_reduction: ``batch_mean``, or ``mean``: weaker by the number of classes (batch_mean |
            batch_mean | mean | -; texq: batch_mean).
        cross_entropy: Weight of the cross entropy with the images' labels, soft ones too (0 | 1 | 1
            | 0; ait, adasg, adadfq, texq: 0).
        flatness: Weight of the flatness of the logits' difference, which holds T² already (0; adasg
            and adadfq: 1).
        logit_distance: Weight of the mean distance of the logits (0 | 0 | 0 | 1).
        relations: Weight of the distance of the feature maps' relations, ZAQ's α (0 | 0 | 0 | 1).
        relation_positions: Most pixels that a stage's feature map may have for that. Ours, for
            larger images; ZAQ's code for CIFAR has maps of up to 1,024.
        feature_attention: HAST's λ, weight of the feature alignment in residual units.
        perturbation: HAST's ε: every image is also shown after one sign step of this size up the
            loss [normalised units]; 0 for none.
        mask: Where gradients pass a learned quantizer: ``code``, ``value`` or ``none``.
        augmentation: ``shift`` (up to an eighth), ``crop`` (resized, half of the area at least) or
            ``none`` (shift | crop | none | none; beside a source ``published`` too has none).
        flip: Probability of mirroring an image; 0 for digits and letters.
        mixing: ``mixup`` or ``cutmix``: every image is mixed with another one and shown to teacher
            and student alike, labels in the same shares; ``mixup_images`` or ``cutmix_images``:
            images only, which leaves no labels; ``none`` (none; texq: mixup_images).
        inundation: Enlarge the update of a weight tensor until enough of its codes change:
            ``quantile``: in one pass, on the grid as it is; ``exact``: AIT's search, on the grid
            that the changed weights would have; ``none`` (none; ait: quantile).
        crossing: AIT's threshold, the share of a tensor's weights whose code is to change in one
            update; falls as the learning rate does. (ImageNet: 1.0e-4, on autorecon 1.0e-3.)
        inundation_cap: Greatest factor, ours; factors of thousands are common. (AIT: 100 in the
            first epoch after the warm-up, none later, which never ends where a gradient is 0.)
        precision: Of convolutions and linears while weights are learnt: ``float32``, ``bfloat16``,
            or ``auto``: bfloat16 at 5 bits and below where the hardware is faster so. Of a source's
            generator and teacher too, there ``auto`` does not ask for bits. Quantizers, losses and
            the finished student are in float32 always.
        weight_decay: Of everything but steps (0 | 1e-4 | 1e-4 | 5e-4; ait: 0).
        legacy: Not learned: activation ranges by the released compounding moving average, in the
            first epochs whatever the warm-up; AIT's search counts a moved zero point as a change of
            every code; ZAQ's BatchNorm (``batch_norm: frozen``) moves its statistics.
        epoch: Batches between two looks at the student: whether all is finite, and how good it is.
        held_out: Beside a source, images of it to judge on in each look; 0: the best is not sought.
        keep: Which student is the result beside a source, the ``last`` or the ``best``.
    """

    preset: str = "learned"
    steps: int | None = None
    warm_up: float | None = None
    ranges_from: str = IMAGES
    milestones: tuple[float, ...] | None = None
    learning_rate: float | None = None
    step_learning_rate: float | None = None
    batch_size: int | None = None
    temperature: float | None = None
    distillation: float | None = None
    kd_reduction: str | None = None
    cross_entropy: float | None = None
    logit_distance: float | None = None
    relations: float | None = None
    relation_positions: int = 1024
    flatness: float | None = None
    feature_attention: float = 0.0
    perturbation: float = 0.0
    mask: str = "code"
    augmentation: str | None = None
    flip: float = 0.5
    mixing: str | None = None
    inundation: str | None = None
    crossing: float = 1e-3
    inundation_cap: float = 1e6
    precision: str = "auto"
    weight_decay: float | None = None
    legacy: bool = False
    epoch: int = 200
    held_out: int = 256
    keep: str = "last"

    def __post_init__(self) -> None:
        for name, known in {
            "kd_reduction": (None, *REDUCTIONS), "mask": MASKS,
            "augmentation": (None, *AUGMENTATIONS), "mixing": (None, *MIXINGS), "keep": KEPT,
            "precision": PRECISIONS, "inundation": (None, *INUNDATIONS), "ranges_from": RANGES_FROM,
        }.items():  # fmt: skip
            if getattr(self, name) not in known:
                choices = ", ".join(choice for choice in known if choice)
                raise ValueError(f"{name} must be one of {choices}. Got '{getattr(self, name)}'.")
        for name in (
            "steps", "learning_rate", "temperature", "batch_size", "relation_positions", "epoch",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0. Got {value}.")
        for name in (
            "step_learning_rate", "distillation", "cross_entropy", "logit_distance", "relations",
            "feature_attention", "perturbation", "weight_decay", "held_out", "flatness",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative. Got {value}.")
        self._check_shares()
        own = preset_named(self.preset)
        self._check_losses()
        if self.legacy and own.learned:
            raise ValueError("legacy is what the published presets' code did; set one of these.")
        if self.ranges_from == GENERATOR and (own.learned or own.ranges == EXTREMES):
            raise ValueError(
                f"ranges_from is for presets that follow ranges in a warm-up; '{self.preset}' does "
                "not. Set preset to published, or leave ranges_from at images."
            )
        if self.held_out == 1:
            raise ValueError("held_out must be 0 or at least 2. Got 1.")

    def _check_shares(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be from 0 to 1. Got {self.flip}.")
        if self.warm_up is not None and not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up is a share from 0 to below 1. Got {self.warm_up}.")
        if self.milestones is not None and not all(0 < m <= 1 for m in self.milestones):
            raise ValueError(f"milestones are shares from 0 to 1. Got {self.milestones}.")
        if not 0 < self.crossing <= 1:
            raise ValueError(f"crossing is a share above 0 up to 1. Got {self.crossing}.")
        if not self.inundation_cap >= 1:
            raise ValueError(f"inundation_cap must be at least 1. Got {self.inundation_cap}.")

    def _check_losses(self) -> None:
        weights = ("distillation", "cross_entropy", "logit_distance", "relations", "flatness")
        own = preset_named(self.preset)
        learnt = {name: _given(getattr(self, name), getattr(own, name)) for name in weights}
        if not (any(learnt.values()) or self.feature_attention):
            raise ValueError(
                f"{', '.join(weights)} and feature_attention are all 0, so there is nothing to "
                "learn. Set one of them."
            )
        mixing = self.mixing or own.mixing
        if learnt["cross_entropy"] and mixing.endswith(IMAGES_ONLY):
            raise ValueError(
                f"mixing '{mixing}' leaves no labels, and the cross entropy needs them. Set "
                f"cross_entropy to 0, or mixing to '{mixing.removesuffix(IMAGES_ONLY)}'."
            )

    @classmethod
    def smallest(cls) -> "DistillConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(steps=3, batch_size=4)

    @property
    def images_per_update(self) -> int:
        """``batch_size``, or the preset's own."""
        return self.batch_size or preset_named(self.preset).batch_size

    def course(self, bits: Bits, source: LiveSource | None = None) -> Course:
        """What these settings come to for a student of these bits, beside a source or not."""
        own, live = preset_named(self.preset), source is not None
        moving = own.moving_rate if self.legacy else None
        fewest = min(bits.weights, bits.activations)
        steps, rate = (250, 1e-4) if fewest >= 5 else (500, 2e-4) if fewest == 4 else (1000, 3e-4)
        if not own.learned:
            steps, rate = own.steps or steps, moving or own.learning_rate
        elif live:
            steps *= SOURCE_STEPS
        steps, rate = self.steps or steps, self.learning_rate or rate
        warm_up, range_steps = before_updates(
            own, steps, self.warm_up, source=source, legacy=self.legacy
        )
        shares = (
            tuple(Fraction(m, own.epochs) for m in own.milestones)
            if self.milestones is None
            else tuple(Fraction(str(m)) for m in self.milestones)
        )
        return Course(
            learned=own.learned,
            steps=steps,
            warm_up=warm_up,
            range_steps=range_steps,
            early_ranges=self.legacy,
            ranges=own.ranges,
            ranges_from=self.ranges_from,
            milestones=shares,
            batch_size=self.images_per_update,
            learning_rate=rate,
            step_learning_rate=_given(self.step_learning_rate, 10 * rate),
            nesterov=own.nesterov,
            temperature=self.temperature or own.temperature,
            distillation=_given(self.distillation, own.distillation),
            kd_reduction=self.kd_reduction or own.kd_reduction,
            cross_entropy=_given(self.cross_entropy, own.cross_entropy),
            logit_distance=_given(self.logit_distance, own.logit_distance),
            relations=_given(self.relations, own.relations),
            relation_positions=self.relation_positions,
            flatness=_given(self.flatness, own.flatness),
            feature_attention=self.feature_attention,
            perturbation=self.perturbation,
            mask=self.mask,
            augmentation=self.augmentation or own.moved(live),
            flip=self.flip,
            mixing=self.mixing or own.mixing,
            inundation=self.inundation or own.inundation,
            crossing=self.crossing,
            inundation_cap=self.inundation_cap,
            precision=self.precision,
            weight_decay=_given(self.weight_decay, own.weight_decay),
            legacy=self.legacy,
            moves_statistics=moving is not None,
            epoch=self.epoch,
            held_out=self.held_out,
            keep=self.keep,
        )


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


@refiners.register(
    "distill",
    DistillConfig,
    sentence="Trains weights and steps to say what the teacher says, on images alone.",
    source="ours; presets of IntraQ, Zhong et al. 2022, HAST, Li et al. 2023, GDFQ, Xu et al. "
    "2020, ZAQ, Liu et al. 2021, AIT, Choi et al. 2022, AdaSG and AdaDFQ, Qian et al. 2023",
)
@dataclass(frozen=True, slots=True)
class Distill:
    """See the module docstring."""

    config: DistillConfig

    def takes_source(self) -> bool:
        """Whether it trains a source beside the student."""
        return True

    def require_fit(self, bits: Bits, source: LiveSource) -> None:
        """Refuse what ``refine`` would refuse of a fresh source.

        Raises:
            ImagesError: If labels are learnt from that the source does not have.
            RecipeError: If no step is left for the student, or its ranges come from elsewhere.
        """
        require_fit(source, self.config.course(bits, source))

    def refine(
        self,
        student: Student,
        images: Images | ImageSource | LiveSource,
        *,
        seed: int = 0,
        monitor: Monitor = SILENT,
        evaluate: Evaluate | None = None,
    ) -> None:
        """Train ``student``, in place; its originals are kept for float mode.

        What was found of the last and the best epoch is appended to ``student.records``.

        Args:
            student: A prepared student; calibrated here where it is not.
            images: Images, all held in memory while training; or any image source, also one that
                is trained beside the student.
            seed: Of the order and the augmentation.
            monitor: Hears of progress; keeps what was learnt, so that a killed run goes on.
            evaluate: Says after every epoch how good the student is, larger is better, in place of
                the agreement on held-out images; of stored images only so is a best one sought.

        Raises:
            ImagesError: If there are no images, or labels are needed and missing.
            NotCalibratedError: If the student has no ranges and the source cannot give images.
            CollapseError: If training diverged; the student is then as it was. Beside a live
                source a DivergedError, which names the loss term; the student is the last good one.
            UnsupportedModelError: If features are asked for that the network does not have.
        """
        live = images if isinstance(images, LiveSource) else None
        course = self.config.course(student.bits, live)
        if not course.learned:
            note_folded_rates(student, self.config.preset, monitor)
            note_compounding_ranges(course, monitor)
        note_doubts(live, course, monitor, judged=evaluate is not None, warm_up=self.config.warm_up)
        if live is not None:
            require_fit(live, course)
        calibrated, calibrate = not student.without_ranges(), refiners.get("calibrate")
        refiner = calibrate.make(calibrate.config())
        if course.learned and live is not None:
            made = warmed_up(live, course, seed=seed, monitor=monitor, draw=not calibrated)
            if made is not None:
                refiner.refine(student, made, seed=seed, monitor=NotesAlone(monitor))
        elif course.learned and not calibrated:
            if not isinstance(images, Images):
                raise NotCalibratedError(
                    "distill: the student has no ranges yet, and they cannot be set from an image "
                    "source. Run the refiner 'calibrate' on some images first."
                )
            refiner.refine(student, images, seed=seed, monitor=monitor)
        source = live or source_of(images, seed)
        if course.ranges_from == GENERATOR:
            follow_generator(student, course, seed=seed, monitor=monitor)
        Training(student, source, course, seed, evaluate=evaluate).run(monitor)

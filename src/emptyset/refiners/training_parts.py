"""What a trained student learns from: its images, how they are shown, and its teacher."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import ImagesError, RecipeError, UnsupportedModelError
from emptyset.graph.originals import put
from emptyset.graph.residual_bodies import Tapped, residual_bodies
from emptyset.graph.stage_outputs import stage_outputs
from emptyset.graph.student import Student
from emptyset.images.augmentation import mirrored, shifted
from emptyset.images.image_set import Batch, ImageSet
from emptyset.images.image_source import Images, ImageSource, LiveSource, StoredImages
from emptyset.images.mixing import IMAGES_ONLY, mixed
from emptyset.inversion.compilation import (
    compiled,
    compiler_found,
    products_in_bfloat16,
    worth_compiling,
)
from emptyset.inversion.resampling import draw_crops, sampled
from emptyset.monitor import Monitor
from emptyset.refiners.course import Course
from emptyset.teachers.teacher import Teacher

AUGMENTATIONS = ("shift", "crop", "none")
# Greatest shift as a share of the image's shorter side: 4 of 32 pixels, as CIFAR is trained.
LARGEST_SHIFT = 1 / 8
# Least share of the area that a crop keeps, as IntraQ.
SMALLEST_CROP = 0.5

# Measured on 2 AVX512 cores with ResNet-20 at batch 128, per thread: student and teacher together
# take 31 ns per element of a quantized activation and update, compiled 19 ns.
_SAVED_SECONDS_PER_ELEMENT = 1.2e-8
# Steps of 5 bits are 16 times as coarse as bfloat16's.
_COARSE_BITS = 5

Network = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""``(N, C, H, W)`` images to ``(N, K)`` logits and features."""


def source_of(images: Images | ImageSource | LiveSource, seed: int) -> ImageSource | LiveSource:
    """A source of batches in random order; images on disk are read into memory.

    Raises:
        ImagesError: If there are no images.
    """
    if not isinstance(images, Images):
        return images
    if len(images) == 0:
        raise ImagesError("distill: there are no images. Give at least one batch.")
    if not isinstance(images, ImageSet):
        batches = list(images.batches(64))
        targets = [batch.targets for batch in batches if batch.targets is not None]
        labelled = len(targets) == len(batches)
        stacked = torch.cat([batch.images for batch in batches])
        images = ImageSet(stacked, torch.cat(targets) if labelled else None)
    return StoredImages(images, seed=seed)


def uses_labels(course: Course) -> bool:
    """Whether a course learns from the images' labels; what it does not use may be anything."""
    mixes_labels = course.mixing != "none" and not course.mixing.endswith(IMAGES_ONLY)
    return course.cross_entropy > 0 or mixes_labels


def on_device(targets: Tensor | None, device: torch.device) -> Tensor | None:
    """Targets where the losses are, int64 or float32: stored ones may be narrower or wider."""
    if targets is None:
        return None
    return targets.to(device, torch.float32 if targets.is_floating_point() else torch.int64)


def augmented(images_NCHW: Tensor, method: str, flip: float, generator: torch.Generator) -> Tensor:
    """Each image moved or cropped, and perhaps mirrored, its own way.

    Args:
        images_NCHW: ``(N, C, H, W)`` [teacher's normalised units].
        method: One of ``AUGMENTATIONS``.
        flip: Probability of mirroring.
        generator: Source of everything random, on the CPU.
    """
    if method == "none":
        return images_NCHW
    count, _, height, width = images_NCHW.shape
    if method == "shift":
        most = int(min(height, width) * LARGEST_SHIFT)
        return mirrored(shifted(images_NCHW, most, generator), flip, generator)
    drawn = draw_crops(
        count, height, width, smallest=SMALLEST_CROP, probability=1.0, generator=generator
    )
    # Ascending: not mirrored, which is drawn below with a probability of its own.
    rows, columns = drawn["crop_rows"], drawn["crop_columns"].sort(dim=1).values
    cropped = sampled(images_NCHW, rows.to(images_NCHW.device), columns.to(images_NCHW.device))
    return mirrored(cropped, flip, generator)


def mixed_batch(batch: Batch, method: str, classes: int, generator: torch.Generator) -> Batch:
    """Every image mixed with another one, and its label too.

    Args:
        batch: Images ``(N, C, H, W)`` and class indices ``(N,)``, probabilities ``(N, K)`` or None.
        method: ``mixup`` or ``cutmix``; with ``_images`` behind it labels are left out.
        classes: K.
        generator: Source of everything random, on the CPU.

    Returns:
        Images and, where labels are mixed, probabilities ``(N, K)``.
    """
    images, partners, shares = mixed(batch.images, method.removesuffix(IMAGES_ONLY), generator)
    targets = None if method.endswith(IMAGES_ONLY) else batch.targets
    if targets is not None:
        if targets.dim() == 1:
            targets = torch.nn.functional.one_hot(targets, classes).to(images)
        targets = shares[:, None] * targets + (1 - shares[:, None]) * targets[partners]
    return Batch(images, targets)


class OwnNetwork:
    """The teacher's network as its user wrote it, in eval mode, for images in any layout.

    Its module stays as it is: where a part of it is in training mode, a copy answers.

    Args:
        teacher: Asked for nothing yet.
        half: Whether products are in bfloat16.
    """

    def __init__(self, teacher: Teacher, *, half: bool = False) -> None:
        self._example, self._half = teacher.example(), half
        self._module = teacher.module
        if any(part.training for part in self._module.modules()):
            self._module = copy.deepcopy(self._module).eval()
        self._takes_channels_last: bool | None = None

    def __call__(self, images_NCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(N, K)`` logits, and no features."""
        shown = images_NCHW if self.takes_channels_last() else images_NCHW.contiguous()
        shown = shown.clone()  # the student is to see them, too: some networks write over theirs
        if not self._half:
            return self._module(shown), []
        with torch.autocast(shown.device.type, torch.bfloat16):
            return self._module(shown).float(), []

    def takes_channels_last(self) -> bool:
        """Whether memory may lie so: ``x.view(len(x), -1)`` refuses it behind a convolution.

        Found out once, with two images, since networks that take it are faster so.
        """
        if self._takes_channels_last is None:
            lying = self._example.contiguous(memory_format=torch.channels_last)
            try:
                with torch.no_grad():
                    self._module(lying)
                self._takes_channels_last = True
            except RuntimeError:
                # What has nothing to do with memory comes again with the images.
                self._takes_channels_last = False
        return self._takes_channels_last


@dataclass(frozen=True)
class Pair:
    """Student and teacher as functions of images, with matching features where asked for.

    Attributes:
        student: Gives logits and features.
        teacher: Gives the same of the float network.
        bodies: So many of the features are what residual units add; the others are outputs of
            stages.
    """

    student: Network
    teacher: Network
    bodies: int = 0

    def compiled(self) -> "Pair":
        """The same through ``torch.compile``; compiling happens at the first call."""
        if isinstance(self.teacher, OwnNetwork):
            # No compiler follows an attempt.
            self.teacher.takes_channels_last()
        return Pair(compiled(self.student), compiled(self.teacher), self.bodies)


def pays_to_compile(student: Student, *, batch_size: int, updates: int, monitor: Monitor) -> bool:
    """Whether compiled updates save more time than compiling takes; says where no compiler is."""
    sizes: list[int] = []
    hooks = [
        quantizer.register_forward_hook(
            lambda _module, inputs, _out: sizes.append(inputs[0].numel())
        )
        for quantizer in student.quantizers.values()
        if quantizer.axis is None
    ]
    try:
        with torch.no_grad(), student.float_mode():
            student(student.teacher.example(1))
    finally:
        for hook in hooks:
            hook.remove()
    pays = worth_compiling(
        student.device,
        elements=sum(sizes) * batch_size,
        layers=len(sizes),
        steps=updates,
        threads=torch.get_num_threads(),
        saved_seconds_per_element=_SAVED_SECONDS_PER_ELEMENT,
    )
    if pays and not compiler_found(student.device):
        monitor.note(
            "distill: no C++ compiler found, so training is not compiled and takes about one and "
            "a half times as long. Install g++ or clang to change that."
        )
        return False
    return pays


def pays_to_halve(student: Student, precision: str) -> bool:
    """Whether products are in bfloat16 while weights are learnt.

    Args:
        student: Of whose bits it depends: rounding to bfloat16 must drown in quantization.
        precision: ``auto``, ``float32`` or ``bfloat16``.
    """
    fewest = min(student.bits.weights, student.bits.activations)
    return products_in_bfloat16(precision, fewest, student.device, coarse_bits=_COARSE_BITS)


def pair_of(
    student: Student,
    *,
    bodies: bool,
    stages: int | None = None,
    moves_statistics: bool = False,
    half: bool = False,
) -> Pair:
    """The student and its teacher.

    Args:
        student: Prepared.
        bodies: Whether both give the bodies of their residual units as features.
        stages: Whether both also give the outputs of their stages, and the most pixels that the map
            of one may have; None: they do not.
        moves_statistics: Whether the student's frozen BatchNorm normalises by the batch, and moves
            what is stored; the teacher's never does.
        half: Whether products are in bfloat16; quantizers, BatchNorm and all else never are.

    Raises:
        UnsupportedModelError: If features are asked for and the network has none.
        RecipeError: If statistics are to move that were folded into weights.
    """
    if moves_statistics and student.batch_norm == "fold" and student.teacher.stored_batch_norms():
        raise RecipeError(
            "distill: legacy of preset 'zaq' moves BatchNorm statistics, and this student's are "
            "folded into its weights. Prepare it with batch_norm 'frozen' (plans every_layer and "
            "edges_8bit), or leave legacy out."
        )
    products = torch.bfloat16 if half else torch.float32
    if not bodies and stages is None:
        teacher = OwnNetwork(student.teacher, half=half)
        if not half and not moves_statistics:
            return Pair(lambda x: (student(x), []), teacher)
        learning = Tapped(student.program, [], products, moves_statistics=moves_statistics)
        return Pair(learning, teacher)
    units = residual_bodies(student.program) if bodies else []
    if bodies and not units:
        raise UnsupportedModelError(
            "distill: feature_attention compares what residual units add, and this network has "
            "none. Set feature_attention to 0."
        )
    ends = stage_outputs(student, most_positions=stages) if stages is not None else []
    if stages is not None and not ends:
        raise UnsupportedModelError(
            f"distill: feature maps of at most {stages} pixels are compared, and this network has "
            "none. Raise relation_positions, or set relations to 0 and use a source that needs no "
            "feature maps (gdfq, qimera, autorecon)."
        )
    reference = student.copy()
    reference.program.requires_grad_(False)
    put(dict(reference.program.named_parameters()), reference.originals)
    for quantizer in reference.quantizers.values():
        quantizer.enabled = False
    by_name = {node.name: node for node in reference.program.graph.nodes}
    tapped = [*units, *ends]
    return Pair(
        Tapped(student.program, tapped, products, moves_statistics=moves_statistics),
        Tapped(reference.program, [by_name[node.name] for node in tapped], products),
        len(units),
    )

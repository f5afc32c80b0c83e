"""The data flow: teacher → images → selected images → student → refined student → file.

Plain functions, each usable alone. Nothing here knows recipes, run folders or screens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emptyset.errors import ImagesError, RecipeError
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import Images
from emptyset.images.no_images import NO_IMAGES
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import plans, refiners, selectors, synthesizers
from emptyset.settings import checked_config
from emptyset.teachers.made_for import made_for_another, require_own_source
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.exporters.certificate import Certificate
    from emptyset.exporters.onnx import Artefact
    from emptyset.exporters.simulation import Simulation
    from emptyset.graph.student import Student
    from emptyset.images.folder import LazyImages
    from emptyset.images.image_source import ImageSource, LiveSource
    from emptyset.quantizers.bits import Bits


def load(
    name: str,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: Path | None = None,
    classes: Path | None = None,
    pretrained: bool = True,
    allow_pickle: bool = False,
    device: str = "cpu",
) -> Teacher:
    """Load a trained network, frozen and in eval mode.

    Args:
        name: ``embedded:digits-resnet``, ``timm:NAME``, ``torchvision:NAME``, ``pytorchcv:NAME``,
            ``hf:NAME-or-folder``, ``file:WEIGHTS`` or ``file:``.
        model: Factory of the network for ``file:``, written ``module:function``.
        model_args: Keyword arguments of the factory.
        input_shape: ``(C, H, W)`` of one image [pixels].
        mean: Per channel [pixel units, 0..1].
        std: Per channel [pixel units, 0..1].
        weights: Local file to read instead of a hub's.
        classes: Text file with one class name a line, or a JSON list.
        pretrained: False builds the architecture only.
        allow_pickle: Run code that a checkpoint's pickle holds. Only for files you trust.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        TeacherError: If the weights or the factory give no usable teacher.
        UnknownNameError: If there is no such source or network.
        MissingExtraError: If the source's package is not installed.
    """
    from emptyset.teachers import load_teacher

    teacher = load_teacher(
        name,
        model=model,
        model_args=model_args,
        input_shape=input_shape,
        mean=mean,
        std=std,
        weights=weights,
        classes=classes,
        pretrained=pretrained,
        allow_pickle=allow_pickle,
    )
    teacher.module.to(chosen_device(device))
    return teacher


def chosen_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        RecipeError: If this machine has no such device.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, usable in there.items() if usable)
    if name not in there:
        raise RecipeError(f"device: expected auto, cpu, cuda or mps, got '{name}'.")
    if not there[name]:
        raise RecipeError(f"device: this machine has no usable {name}. Use auto or cpu.")
    return torch.device(name)


def images_from(path: Path | str, teacher: Teacher, *, limit: int | None = None) -> "LazyImages":
    """Real images, read and prepared as the teacher expects while they are used.

    Args:
        path: Folder of photos, folder with one subfolder per class, npz with ``images``
            (uint8 NHWC) and ``labels``, or a stored image set, in one file or in shards.
        teacher: Gives size and normalisation.
        limit: At most this many.

    Raises:
        ImagesError: If there are none, or one cannot be used.
    """
    from emptyset.images.folder import load_images
    from emptyset.inversion.labels import known_class_count

    path = Path(path)
    if not path.exists():
        raise ImagesError(f"{path}: there is no such file or folder of images.")
    return load_images(
        path,
        teacher.input,
        limit=limit,
        class_names=teacher.class_names,
        classes=lambda: known_class_count(teacher),
    )


def synthesize(
    teacher: Teacher,
    method: str = "zeroq",
    count: int = 1024,
    *,
    seed: int = 0,
    monitor: Monitor = SILENT,
    **settings: Any,
) -> ImageSet:
    """Make images that carry what the teacher knows of its training data.

    Args:
        teacher: The trained network.
        method: A synthesizer, see ``emptyset methods``.
        count: Number of images.
        seed: Seed of everything random.
        monitor: Hears of progress.
        **settings: Settings of the method.

    Raises:
        UnknownNameError: If there is no such method.
        RecipeError: If a setting is wrong.
        UnsupportedModelError: If the teacher lacks what the method needs.
    """
    entry = synthesizers.get(method)
    maker = entry.make(checked_config(entry.config, settings, where=(method,)))
    images: ImageSet = maker.synthesize(teacher, count, seed=seed, monitor=monitor)
    return images


def synthesize_to(
    folder: Path | str,
    teacher: Teacher,
    method: str = "zeroq",
    count: int = 1024,
    *,
    seed: int = 0,
    per_shard: int | None = None,
    monitor: Monitor = SILENT,
    **settings: Any,
) -> dict[str, Any]:
    """Make the same images as ``synthesize`` and store them while they are made.

    Memory does not grow with their number, as far as the method makes them in batches, which all
    inversion methods do. ``images_from(folder, teacher)`` reads them the same way.

    Args:
        folder: Where ``images.safetensors`` and ``card.json`` go; what an earlier card there names
            is replaced.
        teacher: The trained network.
        method: A synthesizer, see ``emptyset methods``.
        count: Number of images.
        seed: Seed of everything random.
        per_shard: Images of one WebDataset shard, ``images-000000.tar`` and on; None: one file.
        monitor: Hears of progress.
        **settings: Settings of the method.

    Returns:
        What the card holds: ``count``, ``shape``, ``units``, ``digest``, ``history``.

    Raises:
        UnknownNameError: As ``synthesize``; so are the others.
        RecipeError: See there.
        ImagesError: If ``per_shard`` is below 1.
        UnsupportedModelError: See there.
    """
    from emptyset.images.shard_writer import write_shards, writer_for
    from emptyset.inversion.synthesizer import InversionSynthesizer

    entry = synthesizers.get(method)
    maker = entry.make(checked_config(entry.config, settings, where=(method,)))
    place = Path(folder)
    if not isinstance(maker, InversionSynthesizer):
        whole: ImageSet = maker.synthesize(teacher, count, seed=seed, monitor=monitor)
        if per_shard is None:
            return whole.save(place)
        return write_shards(whole, place, per_shard=per_shard)
    with writer_for(place, count, per_shard=per_shard) as writer:
        made = maker.synthesize_into(writer.add, teacher, count, seed=seed, monitor=monitor)
        return writer.finish((made,))


def select(images: ImageSet, teacher: Teacher, method: str = "energy", **settings: Any) -> ImageSet:
    """Keep the better part of a set of images, in the old order.

    Args:
        images: The set.
        teacher: Judges the images.
        method: A selector, see ``emptyset methods``.
        **settings: Settings of the method.
    """
    entry = selectors.get(method)
    selector = entry.make(checked_config(entry.config, settings, where=(method,)))
    chosen: ImageSet = selector.select(images, teacher)
    return chosen


def prepare(
    teacher: Teacher,
    bits: "str | Bits" = "w8a8",
    *,
    plan: str = "integer",
    batch_norm: str = "fold",
    overrides: Mapping[str, str] | None = None,
    **settings: Any,
) -> "Student":
    """Capture the teacher and place quantizers in it; their ranges are not set yet.

    Args:
        teacher: The trained network; it stays as it is.
        bits: For example ``w4a8``.
        plan: ``integer``, ``edges_8bit`` or ``every_layer``.
        batch_norm: ``fold`` into the weights, or ``frozen``: statistics fixed, kept apart.
        overrides: Bits per module path pattern.
        **settings: Settings of the plan.

    Raises:
        BitsError: If the bits cannot be read.
        CaptureError: If the network cannot be captured.
    """
    from emptyset.graph.student import prepare as prepare_student

    entry = plans.get(plan)
    checked_config(entry.config, settings, where=(plan,))
    return prepare_student(
        teacher,
        bits,
        plan=plan,
        batch_norm=batch_norm,
        overrides=overrides,
        plan_settings=settings or None,
    )


def refine(
    student: "Student",
    images: "ImageSet | LazyImages | ImageSource | LiveSource | None",
    method: str = "calibrate",
    *,
    seed: int = 0,
    monitor: Monitor = SILENT,
    **settings: Any,
) -> None:
    """Fit the student's quantizers to the images, in place.

    Args:
        student: From ``prepare``.
        images: From ``synthesize``, ``images_from`` or ``emptyset.source``; None for what needs
            none.
        method: A refiner, see ``emptyset methods``.
        seed: Seed of everything random.
        monitor: Hears of progress.
        **settings: Settings of the method.

    Raises:
        UnknownNameError: If there is no such method.
        RecipeError: If a setting is wrong.
        ImagesError: If the images are no set of images, or the method cannot use them.
    """
    entry = refiners.get(method)
    refiner = entry.make(checked_config(entry.config, settings, where=(method,)))
    given = NO_IMAGES if images is None else images
    if isinstance(given, torch.Tensor):
        raise ImagesError(
            "refine: expected a set of images, got a Tensor. Put it, (N, C, H, W) in "
            "normalised units, into one: emptyset.ImageSet(tensor)."
        )
    require_own_source(given, student.teacher)
    looks = getattr(refiner, "needs_images", lambda: True)()
    if looks and not isinstance(given, Images) and not hasattr(refiner, "takes_source"):
        raise ImagesError(
            f"{method}: expected a set of images. Got {type(given).__name__}. Draw a set from it "
            "first: source.drawn(count, seed=...)."
        )
    warning = made_for_another(given, student.teacher)
    if warning is not None and warning not in student.warned:
        student.warned.add(warning)
        monitor.note(warning)
    refiner.refine(student, given, seed=seed, monitor=monitor)


def export(
    student: "Student",
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
    float_path: Path | None = None,
) -> "Artefact":
    """Write the student as an ONNX file with QuantizeLinear and DequantizeLinear.

    Args:
        student: With its ranges set.
        path: The file.
        metadata: Additional entries of the file.
        float_path: Where to write the float network too, to compare size and speed.

    Raises:
        NotCalibratedError: If a quantizer has no range yet.
        MissingExtraError: If ``emptyset[onnx]`` is not installed.
    """
    from emptyset.exporters.onnx import export as export_onnx

    return export_onnx(student, Path(path), metadata=metadata, float_path=float_path)


def certify(
    path: Path | str,
    student: "Student",
    images: "ImageSet | LazyImages",
    *,
    limit: int | None = None,
    simulation: "Simulation | None" = None,
    image_source: str = "given",
    monitor: Monitor = SILENT,
) -> "Certificate":
    """Prove, node by node on the runtime's codes, that the file computes what was simulated.

    Args:
        path: From ``export``.
        student: The student that was exported.
        images: What both are shown.
        limit: At most this many images; None: as many as give 256 images of 32x32 pixels.
        simulation: The artefact's, to save the time of making it again.
        image_source: Where the images came from, for the record.
        monitor: Hears of progress.
    """
    from emptyset.exporters.certificate import certify as certify_onnx

    return certify_onnx(
        Path(path),
        student,
        images,
        limit=limit,
        simulation=simulation,
        image_source=image_source,
        monitor=monitor,
    )

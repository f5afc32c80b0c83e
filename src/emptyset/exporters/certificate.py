"""Proof that the file computes what was simulated, constant by constant and code by code.

First every constant of the file is compared exactly with the simulation's. Then images run through
the shipped file's kernels with all integer codes exposed, and through the simulation in double
precision: at every quantizer the two codes are compared, and the simulation goes on with the
runtime's. A difference of one code where the exact value lies within 1e-3 of a rounding boundary
is a tie; anything else is a fault, and so are too many ties. One batch is compared with the student
itself in the same way.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emptyset.errors import CertificateError, ImagesError, MissingExtraError
from emptyset.exporters.code_comparison import CodeComparison, NodeRecord
from emptyset.exporters.constants_check import compare_constants
from emptyset.exporters.kernels import instruction_set, saturates, session
from emptyset.exporters.simulation import Simulation, is_quantize, simulate
from emptyset.exporters.student_comparison import student_fault
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor

PIXELS_PER_BATCH = 64 * 32 * 32
PIXELS_IN_ALL = 256 * 32 * 32
# Logits are float sums; the runtime adds in float32, the comparison in float64.
LOGITS_GAP = 1e-4


@dataclass(frozen=True)
class Certificate:
    """What was compared, and whether it holds.

    Attributes:
        holds: Whether the file computes what was simulated, and that is the student.
        fault: The first thing that differs: node, operator and worst value; None where it holds.
        images: Number of images compared.
        image_source: Where they came from.
        constants: Number of tensors compared exactly.
        nodes: One record per quantizer.
        values: Codes compared.
        ties: Codes that differ by one at a rounding boundary.
        prediction_agreement: Share of images on which file and simulation predict the same class.
        batch_sizes: Batch sizes at which the file was run.
        same_kernels: Whether exposing the codes left the integer kernels as they are.
        environment: Opset, runtime version, instruction set.
    """

    holds: bool
    fault: str | None
    images: int
    image_source: str
    constants: int
    nodes: list[NodeRecord] = field(repr=False)
    values: int
    ties: int
    prediction_agreement: float
    batch_sizes: list[int]
    same_kernels: bool
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON data, as `certificate.json` holds it."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a table."""
        if not self.holds:
            return f"FAILED: {self.fault}"
        ties = "1 rounding tie" if self.ties == 1 else f"{self.ties} rounding ties"
        return (
            f"holds: {len(self.nodes)} tensors, {self.values:,} codes of {self.images} images, "
            f"{ties}, no other difference; {self.constants} constants equal"
        )

    def require(self) -> "Certificate":
        """This certificate, if it holds.

        Raises:
            CertificateError: If it does not.
        """
        if not self.holds:
            raise CertificateError(
                f"The file does not compute what was simulated: {self.fault}. Do not ship it. "
                "docs/troubleshooting.md ('The certificate fails') lists causes."
            )
        return self


def certify(
    path: Path | str,
    student: Student,
    images: Images,
    *,
    limit: int | None = None,
    simulation: Simulation | None = None,
    image_source: str = "given",
    monitor: Monitor = SILENT,
) -> Certificate:
    """Compare a file with the student it was exported from.

    Args:
        path: The ONNX file.
        student: The student, calibrated, as at export.
        images: Normalised images, at least 2.
        limit: How many to use, at least 2; None: as many as give 256 images of 32x32 pixels, and
            no fewer than 8.
        simulation: Reuse the one that `export` gave; None: it is made anew.
        image_source: Where the images came from, for the record.
        monitor: Hears of progress.

    Raises:
        ImagesError: With fewer than 2 images, or with a limit below 2.
        CertificateError: If the runtime cannot load the file.
    """
    path = Path(path)
    simulation = simulation or simulate(student)
    used = _limit(images, limit)
    batch = max(2, PIXELS_PER_BATCH // _pixels(student))
    shipped = _loaded(path)
    constants, fault = compare_constants(path, simulation)
    exposed, same_kernels = _exposed(path, simulation)
    comparison = CodeComparison(simulation)
    agree, done, sizes = 0, 0, {1}
    logits_fault = None
    for piece in images.batches(batch):
        if done >= used:
            break
        chunk = piece.images[: used - done]
        if len(chunk) < 2 and done:
            break
        logits, wrong = _compare(comparison, chunk, shipped, exposed)
        logits_fault = wrong or logits_fault
        agree += int((simulation(chunk).argmax(1).numpy() == logits.argmax(1)).sum())
        sizes.add(len(chunk))
        done += len(chunk)
        monitor.advance("certificate", done, used)
    alone = _fault_alone(CodeComparison(simulation), images, shipped, exposed)
    fault = fault or comparison.fault() or alone or logits_fault
    if fault is None:
        fault = student_fault(student, simulation, next(iter(images.batches(batch))).images[:used])
    if fault is None and not same_kernels:
        fault = "exposing the codes changes which integer kernels run"
    nodes = comparison.records()
    # A published plan may leave every input of a layer in float.
    codes = any(is_quantize(node) for node in simulation.program.graph.nodes)
    if fault is None and (not done or (codes and not any(n.values for n in nodes))):
        fault = "no codes were compared"
    return Certificate(
        fault is None, fault, done, image_source, constants, nodes,
        sum(n.values for n in nodes), sum(n.ties for n in nodes), agree / max(done, 1),
        sorted(sizes), same_kernels, _environment(path),
    )  # fmt: skip


def _loaded(path: Path) -> Any:
    try:
        return session(path)
    except MissingExtraError:
        raise
    except Exception as error:  # the runtime raises kinds of its own
        raise CertificateError(
            f"{path}: ONNX Runtime cannot load this file ({error}). It is damaged, or no ONNX "
            "file; export the student again."
        ) from error


def _limit(images: Images, limit: int | None) -> int:
    if len(images) < 2:
        raise ImagesError(f"The certificate needs at least 2 images. Got {len(images)}.")
    if limit is not None and limit < 2:
        raise ImagesError(f"limit: the certificate needs at least 2 images. Got {limit}.")
    if limit is None:
        first = next(iter(images.batches(1))).images
        limit = max(8, PIXELS_IN_ALL // (first.shape[-1] * first.shape[-2]))
    return min(limit, len(images))


def _pixels(student: Student) -> int:
    _, height, width = student.teacher.input.shape
    return height * width


def _exposed(path: Path, simulation: Simulation) -> tuple[Any, bool]:
    """A session that also gives every tensor of codes, and whether its kernels are the same."""
    import onnx
    from onnx import helper

    from emptyset.exporters.kernels import INTEGER, kernels_of

    model = onnx.load(path)
    known = {name for node in model.graph.node for name in node.output}
    for node in simulation.program.graph.nodes:
        if is_quantize(node) and node.name in known:
            model.graph.output.append(helper.make_empty_tensor_value_info(node.name))
    serialized = model.SerializeToString()
    before, after = kernels_of(path).counts, kernels_of(serialized).counts
    same = all(before.get(kind, 0) == after.get(kind, 0) for kind in INTEGER)
    return session(serialized), same


def _compare(
    comparison: CodeComparison, images: Tensor, shipped: Any, exposed: Any
) -> tuple[np.ndarray[Any, Any], str | None]:
    """Logits of the shipped file, and what is wrong with them; the codes go to the comparison."""
    given, fault = {shipped.get_inputs()[0].name: images.numpy()}, None
    names = [output.name for output in exposed.get_outputs()]
    values = dict(zip(names, exposed.run(None, given), strict=True))
    logits: np.ndarray[Any, Any] = shipped.run(None, given)[0]
    if not np.array_equal(logits, values[names[0]]):
        fault = "exposing the codes changes the logits"
    expected = comparison.compare(images, values).numpy()
    gap = float(np.abs(logits - expected).max() / (np.abs(expected).max() or 1.0))
    if not gap <= LOGITS_GAP:
        fault = f"the logits differ by {gap:.1e} of the largest from what follows"
    return logits, fault


def _fault_alone(
    comparison: CodeComparison, images: Images, shipped: Any, exposed: Any
) -> str | None:
    """What is wrong with one image by itself: files of a fixed batch, or that mix the images."""
    image = next(iter(images.batches(1))).images
    try:
        shipped.run(None, {shipped.get_inputs()[0].name: image.numpy()})
    except Exception as error:  # the runtime raises kinds of its own
        return f"the file does not take an image by itself: {error}"
    _, fault = _compare(comparison, image, shipped, exposed)
    fault = comparison.fault() or fault
    return None if fault is None else f"one image by itself: {fault}"


def _environment(path: Path) -> dict[str, Any]:
    import onnx
    import onnxruntime

    return {
        "opset": max(o.version for o in onnx.load(path, load_external_data=False).opset_import),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "instruction_set": instruction_set(),
        "x64quantprecision": saturates(),
    }

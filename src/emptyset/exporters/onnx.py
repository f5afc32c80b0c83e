"""The artefact: an ONNX file with QuantizeLinear and DequantizeLinear and a dynamic batch."""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from emptyset.errors import MissingExtraError, UnsupportedModelError
from emptyset.exporters.simulation import Simulation, simulate
from emptyset.graph.capture import export_dynamic
from emptyset.graph.plain_operators import plain_operators
from emptyset.graph.student import Student
from emptyset.quantizers.pt2e import quietly
from emptyset.teachers.teacher import Teacher

OPSET = 21
LARGEST_PROTOBUF = 2**31 - 2**20
INPUT_NAME, OUTPUT_NAME = "images", "logits"


@dataclass(frozen=True)
class Artefact:
    """An exported file and what a stock runtime makes of it.

    Attributes:
        path: The file.
        size_bytes: Its size, external data included.
        float_path: The float file it was compared with, or None.
        float_size_bytes: Its size.
        operators: Operators of the runtime's optimised graph by kind.
        integer_share: Share of arithmetic operators on integer kernels, 0 to 1.
        fallbacks: Operators that run in float, and why.
        notes: What a reader should know: storage of 2- and 3-bit weights, raised channels.
        simulation: The program that the file must compute.
    """

    path: Path
    size_bytes: int
    float_path: Path | None
    float_size_bytes: int | None
    operators: dict[str, int]
    integer_share: float
    fallbacks: list[Any]
    notes: list[str]
    simulation: Simulation = field(repr=False)
    series_pairs: int = 0
    other_pairs: int = 0

    def to_json(self) -> dict[str, Any]:
        """What the report needs, as JSON data."""
        return {
            "file": self.path.name,
            "size_bytes": self.size_bytes,
            "float_size_bytes": self.float_size_bytes,
            "operators": self.operators,
            "integer_share": self.integer_share,
            "fallbacks": [vars(f) for f in self.fallbacks],
            "series_pairs": self.series_pairs,
            "other_pairs": self.other_pairs,
            "notes": self.notes,
        }


def export(
    student: Student,
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
    float_path: Path | None = None,
) -> Artefact:
    """Write the student as an ONNX file that computes exactly what its simulation computes.

    The file's input are normalised images ``(N, C, H, W)``, its output the logits ``(N, K)``, as in
    the teacher's forward. It carries version, teacher hash, mean, std and class names.

    Args:
        student: A calibrated student; it stays as it is and can be trained on.
        path: Where to write; written aside and renamed.
        metadata: Further text entries for the file, for example the recipe's hash.
        float_path: Where to write the float network as well, for size and speed.

    Raises:
        NotCalibratedError: If a quantizer has no range yet.
        MissingExtraError: If the extra `onnx` is not installed.
        UnsupportedModelError: If ONNX has no form for an operator of the network.
    """
    _require_onnx()
    from emptyset.exporters import onnx_rewrites as rewrites
    from emptyset.exporters.kernels import kernels_of
    from emptyset.exporters.onnx_graph import OnnxGraph
    from emptyset.exporters.onnx_means import means_on_integers

    path = Path(path)
    simulation = simulate(student)
    graph = OnnxGraph(_to_proto(simulation.exported, student.teacher))
    rewrites.linears_as_gemm(graph, simulation)
    rewrites.convolutions_as_gemm(graph, simulation)
    means_on_integers(graph, simulation)
    rewrites.move_codes(graph)
    rewrites.keep_softmax_exact(graph)
    stored = rewrites.store_weights(graph, simulation)
    rewrites.store_biases(graph, simulation)
    rewrites.clip_codes(graph, simulation)
    graph.rename_output(OUTPUT_NAME)
    model = graph.write_back()
    entries = _entries(student.teacher) | {"bits": str(student.bits), "plan": student.plan}
    size = write(model, path, {**entries, **(metadata or {})})
    float_size = None
    if float_path is not None:
        float_size = export_float(student.teacher, float_path)
    kernels = kernels_of(path)
    return Artefact(
        path, size, float_path, float_size, kernels.counts, kernels.integer_share,
        kernels.fallbacks, _notes(simulation, stored, rewrites.weight_grids(simulation)),
        simulation, kernels.series_pairs, kernels.other_pairs,
    )  # fmt: skip


def export_float(teacher: Teacher, path: Path) -> int:
    """Write the float network as ONNX; gives the size in bytes."""
    _require_onnx()
    from emptyset.exporters.onnx_graph import OnnxGraph

    module, example = copy.deepcopy(teacher.module).cpu(), teacher.example().cpu()
    exported = export_dynamic(module, example)
    with quietly():
        program = exported.module(check_guards=False)
    if plain_operators(program):
        exported = export_dynamic(program, example)
    graph = OnnxGraph(_to_proto(exported, teacher))
    graph.rename_output(OUTPUT_NAME)
    model = graph.write_back()
    return write(model, path, _entries(teacher))


def write(model: Any, path: Path, entries: Mapping[str, str]) -> int:
    """Check, add metadata, write aside and rename; gives the size in bytes.

    Tensors go to a second file only where the whole exceeds what one protobuf may hold (2 GB).
    """
    import onnx

    for key, value in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"emptyset.{key}", value
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    beside = path.with_name(f"{path.name}.data")
    external = model.ByteSize() >= LARGEST_PROTOBUF
    try:
        if external:
            beside.unlink(missing_ok=True)  # onnx refuses or appends to one that is there
            onnx.save(model, aside, save_as_external_data=True, location=beside.name)
            onnx.checker.check_model(str(aside))
        else:
            onnx.checker.check_model(model)
            onnx.save(model, aside)
        aside.replace(path)
    except BaseException:
        if external:
            beside.unlink(missing_ok=True)
        raise
    finally:
        aside.unlink(missing_ok=True)
    return path.stat().st_size + (beside.stat().st_size if external else 0)


def _require_onnx() -> None:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(
            'Writing ONNX files needs the extra "onnx". Run: pip install "emptyset[onnx]"'
        ) from error
    del onnx, onnxscript


def _to_proto(exported: torch.export.ExportedProgram, teacher: Teacher) -> Any:
    # Of a step behind the translation, which torch's exporter lets through.
    from onnx_ir.passes import PassError

    try:
        with quietly(), torch.no_grad():
            program = torch.onnx.export(
                exported, (teacher.example().cpu(),), dynamo=True, opset_version=OPSET,
                verbose=False, input_names=[INPUT_NAME],
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, PassError) as error:
        raise UnsupportedModelError(_unwritten(error)) from error
    assert program is not None
    model = program.model_proto
    for value, name in ((model.graph.input[0], "batch"), (model.graph.output[0], "batch")):
        value.type.tensor_type.shape.dim[0].dim_param = name
    return model


def _unwritten(error: BaseException) -> str:
    """Which operator torch's exporter has no ONNX form for; its own pages of advice apart."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = "\n".join(map(str, reversed(chain)))
    named = re.search(r"(?:op='|torch\.ops\.|for node '\w+' \(::)([\w.]+)", text)
    what = f"the operator '{named[1]}'" if named else "this network"
    reason = str(chain[-1]).strip().partition("\n")[0]
    return (
        f"torch's exporter cannot write {what} as ONNX ({reason}). Replace it in the network, or "
        "in a wrapper module, by operators that have an ONNX form; the student can be measured "
        "without a file."
    )


def _entries(teacher: Teacher) -> dict[str, str]:
    from emptyset._version import __version__

    spec = teacher.input
    entries = {
        "version": __version__,
        "teacher": teacher.public_name,
        "teacher_hash": teacher.weights_hash,
        "mean": json.dumps(list(spec.mean)),
        "std": json.dumps(list(spec.std)),
        "input": "normalised images: (pixels in 0..1 - mean) / std"
        + ", RGB" * (spec.shape[0] == 3),
    }
    if teacher.class_names:
        entries["class_names"] = json.dumps(list(teacher.class_names))
    return entries


def _notes(simulation: Simulation, stored: dict[str, int], grids: dict[str, Any]) -> list[str]:
    notes: list[str] = []
    narrow = sorted({grids[name].bits for name, bits in stored.items() if grids[name].bits < bits})
    notes += [
        f"{bits}-bit weights are stored in 4 bits each (ONNX has no narrower type here)."
        for bits in narrow
        if bits < 4
    ]
    if 4 in stored.values():
        notes.append("4-bit weights are stored in 4 bits and computed by 8-bit integer kernels.")
    notes += [
        f"{layer}: weight scale raised in {count} channels so that the bias fits int32."
        for layer, count in simulation.raised.items()
    ]
    return notes

"""Which kernels a stock ONNX Runtime really uses for a file, read off its own optimised graph."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from emptyset.errors import MissingExtraError

INTEGER = {
    "QLinearConv", "QLinearAdd", "QLinearMul", "QGemm", "QLinearMatMul", "QLinearConcat",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid",
    "QLinearSoftmax", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "QLinearWhere",
    "QLinearReduceMean",
}  # fmt: skip
# What only moves or reads off values, and what goes from codes to values and back.
MOVING = {
    "QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Dropout", "Reshape", "Flatten",
    "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat", "Expand", "Tile", "Gather",
    "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Compress", "Trilu", "Pad",
    "DepthToSpace", "SpaceToDepth", "MaxPool", "NhwcMaxPool", "ReorderInput", "ReorderOutput",
    "Shape", "Size",
}  # fmt: skip
# What gives codes, whole numbers or truths, whatever it reads.
NO_FLOAT = {
    "QuantizeLinear", "Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Equal", "Greater", "Less",
    "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf", "MatMulInteger",
    "ConvInteger",
}  # fmt: skip
FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
# A QGemm of so many inputs has a scale for its output, and gives codes.
QGEMM_OF_CODES = 9
REASONS = {
    "Conv": "its output is not quantized, or a float operator stands between it and its quantizer",
    "Gemm": "an operand is not quantized",
    "MatMul": "an operand is not quantized",
    "ReduceMean": "ONNX Runtime has no integer mean over these axes",
    "Resize": "ONNX Runtime interpolates in float",
    "AveragePool": "input or output is not quantized",
    "GlobalAveragePool": "input or output is not quantized",
    "Add": "an operand is not quantized, or a constant's shape has no integer kernel",
    "Mul": "an operand is not quantized, or a constant's shape has no integer kernel",
}
NONLINEAR = "ONNX Runtime has no integer kernel for it"


@dataclass(frozen=True)
class Fallback:
    """One operator that runs in float.

    Attributes:
        node: Name of its output value.
        operator: Its kind.
        why: The reason, in a sentence.
    """

    node: str
    operator: str
    why: str


@dataclass(frozen=True)
class Kernels:
    """What the runtime executes.

    Attributes:
        counts: Operators of the optimised graph by kind.
        integer: Arithmetic operators on integer kernels.
        fallbacks: Operators that read computed values in float and do more than move them.
        series_pairs: Dequantize-quantize pairs that requantize a tensor to another width.
        other_pairs: Remaining dequantize nodes that feed no series pair.
    """

    counts: dict[str, int]
    integer: int
    fallbacks: list[Fallback]
    series_pairs: int
    other_pairs: int

    @property
    def integer_share(self) -> float:
        """Share of the arithmetic operators that run on integer kernels, 0 to 1."""
        total = self.integer + len(self.fallbacks)
        return self.integer / total if total else 1.0


def session(
    model: Path | bytes, *, optimised: Path | None = None, threads: int | None = None
) -> Any:
    """An ONNX Runtime session on the CPU, quiet, with what the certificate relies on.

    Args:
        model: File or serialized model.
        optimised: Where to write the optimised graph.
        threads: Threads within an operator; None: all.

    Raises:
        MissingExtraError: If ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            'ONNX Runtime is not installed. Run: pip install "emptyset[onnx]"'
        ) from error
    options = onnxruntime.SessionOptions()
    # Warnings of the runtime (4: fatal, 3: error) would land in the middle of our output.
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if saturates():
        # u8*s8 kernels without VNNI add two products in 16 bits, which can saturate.
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def instruction_set() -> str:
    """What the runtime's integer kernels use on this processor, as far as it tells."""
    import torch

    if torch.cpu._is_vnni_supported():
        return "avx512_vnni"
    return str(torch.backends.cpu.get_cpu_capability()).lower()


def saturates() -> bool:
    """Whether this processor's u8*s8 kernels can saturate (x86 without VNNI)."""
    import platform

    return platform.machine() in ("x86_64", "AMD64") and instruction_set() != "avx512_vnni"


def kernels_of(path: Path | bytes) -> Kernels:
    """Load the file, read the optimised graph, sort its operators."""
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        session(path, optimised=optimised)
        graph = onnx.load(optimised, load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    floats, constants = _floats(graph), {c.name for c in graph.initializer}
    fallbacks = [
        Fallback(node.output[0], node.op_type, REASONS.get(node.op_type, NONLINEAR))
        for node in graph.node
        if node.op_type not in INTEGER | MOVING and not constants.issuperset(floats & {*node.input})
    ]
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    series = other = 0
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            behind = readers.get(node.output[0], [])
            if behind and all(r.op_type == "QuantizeLinear" for r in behind):
                series += 1
            else:
                other += 1
    integer = sum(count for kind, count in counts.items() if kind in INTEGER)
    return Kernels(dict(counts), integer, fallbacks, series, other)


def _floats(graph: onnx.GraphProto) -> set[str]:
    """Names of all values of floating point; the optimised graph tells no types."""
    found = {c.name for c in graph.initializer if c.data_type in FLOATS}
    found |= {v.name for v in graph.input if v.type.tensor_type.elem_type in FLOATS}
    for node in graph.node:  # a file's nodes are in order
        if _gives_float(node, found):
            found.update(node.output)
    return found - {""}


def _gives_float(node: onnx.NodeProto, floats: set[str]) -> bool:
    kind = node.op_type
    if kind in NO_FLOAT:
        return False
    if kind in ("DequantizeLinear", "MatMulIntegerToFloat"):
        return True
    if kind == "QGemm":
        return len(node.input) < QGEMM_OF_CODES
    if kind in INTEGER:
        return False
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if kind == "Cast":
        return attributes["to"].i in FLOATS
    if kind in ("Constant", "ConstantOfShape"):
        return "value" not in attributes or attributes["value"].t.data_type in FLOATS
    # A choice has the type of what it chooses from, anything else that of its first input.
    first = 1 if kind == "Where" else 0
    return len(node.input) > first and node.input[first] in floats

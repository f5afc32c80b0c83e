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
ARITHMETIC = {
    "Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Add",
    "Mul", "Sub", "Div", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Softmax",
    "LayerNormalization", "SkipLayerNormalization", "Gelu", "BiasGelu", "FastGelu", "QuickGelu",
    "HardSwish", "HardSigmoid", "Sigmoid", "Erf", "Tanh", "LeakyRelu", "PRelu", "Relu", "Clip",
    "BatchNormalization", "GroupNorm", "InstanceNormalization", "Pow", "Sqrt", "Exp", "MatMulNBits",
    "ReduceSum", "Elu", "Mish", "Softplus", "NhwcFusedConv",
}  # fmt: skip
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
        fallbacks: Arithmetic operators in float, Q/DQ pairs apart.
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
    kinds = {c.name: c.data_type for c in graph.initializer}
    fallbacks = [
        Fallback(node.output[0], node.op_type, REASONS.get(node.op_type, NONLINEAR))
        for node in graph.node
        if node.op_type in ARITHMETIC and not _on_codes(node, kinds)
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


def _on_codes(node: Any, kinds: dict[str, int]) -> bool:
    """A Clip of 8-bit codes is integer work, though its name is that of the float operator."""
    codes = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    return node.op_type == "Clip" and kinds.get(node.input[1]) in codes

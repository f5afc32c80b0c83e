"""Size and speed of the exported file against float32 and ONNX Runtime's own `quantize_static`.

    python benchmarks/file_speed.py [--models resnet18,resnet50,mobilenetv2_100] [--rounds 15]

Random weights (timm, no download), BatchNorm statistics from three batches of noise; the CIFAR
network is a trained one of ../shared/weights. All files of
one network are timed in turn in one process (A B C D A B C D), the median counts. Writes
`results/file_speed.md` and `.json`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import shared_networks as shared
import timm
import torch

from emptyset.exporters.kernels import instruction_set, kernels_of, session
from emptyset.exporters.onnx import export
from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import InputSpec, Teacher

RESULTS = Path(__file__).parent / "results"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def teacher_of(name: str) -> Teacher:
    """An untrained network whose BatchNorm has statistics of its own."""
    if name in shared.NETWORKS:
        return shared.load(name)
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 224, 224))
    return Teacher(name, module.eval().requires_grad_(False), InputSpec((3, 224, 224), MEAN, STD))


def static_quantized(float_file: Path, images: torch.Tensor, folder: Path) -> Path:
    """ONNX Runtime's `quantize_static`: QDQ, per channel, min-max, after its own preprocessing."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.waiting = iter([{"images": piece.numpy()} for piece in images.split(4)])

        def get_next(self) -> Any:
            return next(self.waiting, None)

    ready, out = folder / "ready.onnx", folder / "static.onnx"
    quant_pre_process(str(float_file), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def timed(
    files: dict[str, Path], shape: tuple[int, int, int], batch: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each file, taken in turn."""
    running = {name: session(path) for name, path in files.items()}
    images = torch.randn(batch, *shape).numpy()
    times: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(-2, rounds):
        for name, one in running.items():
            start = time.perf_counter()
            one.run(None, {one.get_inputs()[0].name: images})
            if turn >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of one network."""
    teacher = teacher_of(name)
    shape = teacher.input.shape
    images = ImageSet(torch.randn(16, *shape))
    files = {"float32": folder / "float.onnx"}
    calibrate = refiners.get("calibrate")
    for bits in ("w8a8", "w4a8", "w4a4"):
        student = prepare(teacher, bits)
        calibrate.make(calibrate.config()).refine(student, images)
        files[bits] = folder / f"{bits}.onnx"
        export(student, files[bits], float_path=files["float32"] if bits == "w8a8" else None)
    files["quantize_static"] = static_quantized(files["float32"], images.images, folder)
    small = shape[-1] <= 64
    times = {
        1: timed(files, shape, 1, 20 * rounds if small else rounds),
        32: timed(files, shape, 32, 5 * rounds if small else max(rounds // 3, 3)),
    }
    base = files["float32"].stat().st_size
    rows = []
    for kind, path in files.items():
        kernels = kernels_of(path)
        rows.append(
            {
                "network": name,
                "file": kind,
                "size_bytes": path.stat().st_size,
                "size_ratio": round(path.stat().st_size / base, 4),
                "integer_share": round(kernels.integer_share, 4),
                "float_operators": sorted({f.operator for f in kernels.fallbacks}),
                "ms_batch_1": round(times[1][kind], 3),
                "ms_batch_32": round(times[32][kind], 2),
                "times_float_batch_1": round(times[1]["float32"] / times[1][kind], 2),
                "times_float_batch_32": round(times[32]["float32"] / times[32][kind], 2),
                "times_static_batch_1": round(times[1]["quantize_static"] / times[1][kind], 2),
                "times_static_batch_32": round(times[32]["quantize_static"] / times[32][kind], 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """The committed table; rows of networks that were not run again stay."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "file_speed.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    again = {row["network"] for row in rows}
    rows = [row for row in old if row["network"] not in again] + rows
    environment = {"instruction_set": instruction_set(), "threads": torch.get_num_threads()}
    text = json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")
    columns = [c for c in rows[0] if c not in ("size_bytes", "float_operators")]
    lines = [
        "# Size and speed of exported files",
        "",
        f"`python benchmarks/file_speed.py`, {environment['instruction_set']}, "
        f"{environment['threads']} threads, files of one network timed in turn. Random "
        "weights but for the CIFAR network.",
        "",
        f"| {' | '.join(columns)} | operators in float |",
        f"|{'---|' * (len(columns) + 1)}",
    ]
    for row in rows:
        cells = [str(row[c]) for c in columns]
        lines.append(f"| {' | '.join(cells)} | {', '.join(row['float_operators']) or 'none'} |")
    (RESULTS / "file_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", default="resnet18,resnet50,mobilenetv2_100,cifar10_resnet20_akamaster"
    )
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, options.rounds, Path(folder))
    write(rows)


if __name__ == "__main__":
    main()

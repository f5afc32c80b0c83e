"""The rows that the terminal and the page show, from ``metrics.json``, in the same words."""

from dataclasses import dataclass
from typing import Any

from emptyset.quantizers.bits import Bits


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        name: What was measured.
        before: Of the float network.
        after: Of the quantized file.
        remark: How to read it.
    """

    name: str
    before: str
    after: str
    remark: str


def percent(share: float | None) -> str:
    """``0.9912`` as ``99.12 %``; two digits, since 0.1 point can matter."""
    return "–" if share is None else f"{100 * share:.2f} %"


def size(count: float | None) -> str:
    """A number of bytes for people: ``0`` to ``999 B``, then kB, MB, GB of 1,000."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def milliseconds(value: float) -> str:
    """Two significant digits below 10 ms."""
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def result_rows(metrics: dict[str, Any]) -> list[Row]:
    """What the user asked: how good, how large, how fast, and is it proved."""
    rows = [*_accuracy(metrics), _agreement(metrics), _bits(metrics), *_file(metrics)]
    rows.append(_certificate(metrics))
    return rows


def _accuracy(metrics: dict[str, Any]) -> list[Row]:
    judged = metrics["evaluation"]
    teacher, student = judged.get("teacher"), judged.get("quantized")
    if not teacher or not student:
        return []
    remark = f"{judged['count']:,} labelled images: {judged['on']}"
    if judged.get("made"):
        remark = (
            f"the classes that {judged['count']:,} images were made for: {judged['on']}; says "
            "nothing of photos"
        )
    rows = [Row("top-1", percent(teacher["top1"]), percent(student["top1"]), remark)]
    if (metrics["teacher"].get("classes") or 0) > 10:
        rows.append(Row("top-5", percent(teacher["top5"]), percent(student["top5"]), ""))
    return rows


def _agreement(metrics: dict[str, Any]) -> Row:
    judged = metrics["evaluation"]
    found = judged["agreement"]
    if found is None:
        return Row("agreement with the teacher", "", "not measured", judged["not_measured"])
    remark = f"95 % interval {percent(found['low'])} to {percent(found['high'])}"
    if not judged.get("teacher"):
        remark += f"; {judged['count']:,} images: {judged['on']}"
    return Row("agreement with the teacher", "", percent(found["share"]), remark)


def described_bits(metrics: dict[str, Any]) -> str:
    """``w4a8``, or ``w4a8, mixed within 0.6`` where each layer has its own."""
    bits: str = metrics["plan"]["bits"]
    mixed = metrics.get("mixed_precision")
    return f"{bits}, mixed within {mixed['budget']}" if mixed else bits


def _bits(metrics: dict[str, Any]) -> Row:
    """Storage and computation are told apart."""
    mixed = metrics.get("mixed_precision")
    if mixed:
        return _mixed_bits(metrics, mixed)
    bits = metrics["plan"]["bits"]
    asked = Bits.parse(bits).weights  # where layers were not measured: there were no images
    least = min((row["weight_bits"] for row in metrics["layers"]), default=asked)
    remark = "of weights and activations"
    if bits != "w8a8":
        stored = 4 if least <= 4 else 8
        remark = (
            f"inner layers; weights are stored in {stored} bits; where the file runs on integers, "
            "8-bit kernels compute"
        )
    return Row("bits", "32", bits, remark)


def _mixed_bits(metrics: dict[str, Any], mixed: dict[str, Any]) -> Row:
    widths = sorted({row["weight_bits"] for row in metrics["layers"]})
    remark = (
        f"of weights, chosen layer by layer within {mixed['budget']}: on average "
        f"{mixed['chosen']['average_bits']:.2f} where the plan leaves a choice; stored in 4 or 8; "
        "where the file runs on integers, 8-bit kernels compute"
    )
    return Row("bits", "32", ", ".join(map(str, widths)), remark)


def _file(metrics: dict[str, Any]) -> list[Row]:
    file, latency = metrics["file"], metrics["latency"]
    ratio = f"{file['ratio']:.2f} of float" if file.get("ratio") else ""
    rows = [Row("file size", size(file.get("float_bytes")), size(file["bytes"]), ratio)]
    if latency:
        rows.append(
            Row(
                f"latency, batch {latency['batch']}",
                milliseconds(latency["float_ms"]),
                milliseconds(latency["quantized_ms"]),
                f"{latency['ratio']:.2f} × as fast, ONNX Runtime on this machine",
            )
        )
    left = len(file["fallbacks"])
    remark = "of the operators that can; the rest is named in the report" if left else ""
    rows.append(Row("on integer kernels", "", percent(file["integer_share"]), remark))
    return rows


def _certificate(metrics: dict[str, Any]) -> Row:
    certificate = metrics["certificate"]
    holds = bool(certificate.get("holds"))
    summary = certificate.get("summary", "")
    if metrics["images"]["source"] == "none":
        summary += "; the images are Gaussian probes, which served nothing else"
    return Row("certificate", "", "holds" if holds else "FAILS", summary)


def headline(metrics: dict[str, Any]) -> str:
    """What the images were, in one sentence; noise is called noise."""
    images = metrics["images"]
    count, source = images["count"], images["source"]
    if source == "none":
        return (
            "No image was used: what BatchNorm stored in training set all ranges and corrections."
        )
    if not images["made"]:
        return f"Calibrated with {count:,} real images from {source}."
    if source == "noise":
        return (
            f"Calibrated with {count:,} images of Gaussian NOISE, as asked for. Ranges from noise "
            "are often wrong; prefer a synthesizer or a few real images."
        )
    beside = images.get("beside")
    if beside:
        return (
            f"Trained with images made by {source} and REAL images from {beside['images']} beside "
            f"them ({beside['choose']}, {beside['share']:.0%} of a batch): for analysis, not "
            "data-free."
        )
    return f"Calibrated with {count:,} images made by {source} from the network alone; no real one."

"""Mixed against uniform bits of weights, top-1 of the exported file in ONNX Runtime.

    python benchmarks/reconstruction_mixed_precision.py [--bits 3,4,5,6,7,8] [--images zeroq,real]

Protocol: plan `integer` (first and last layer 8 bits), 8-bit activations, refiner `calibrate`, seed
0, 1,024 images. A budget of 4 bits is an average over the layers whose weights are free, as wide as
the uniform plan of 4 bits beside it. Mixed plans choose from 2 to 8 bits in every layer, by the
divergence of every layer alone on the same 1,024 images (measured once, for all budgets). The
network's own float top-1 stands beside. Writes `results/reconstruction_mixed_precision.md` and
`.json`; rows already there are kept and not measured again, unless `--again` is given.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import shared_networks as shared
import torch
from torch import Tensor

import emptyset
from emptyset.bit_allocation.frontier import Allocation
from emptyset.bit_allocation.mixed_precision import MixedPrecision
from emptyset.evaluate.accuracy import Predict
from emptyset.evaluate.agreement import divergence
from emptyset.evaluate.runtime import OnnxClassifier
from emptyset.images.image_set import ImageSet
from emptyset.measurement import predictor
from emptyset.recipe_by_bits import practical_recipe
from emptyset.teachers.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
NAME = "reconstruction_mixed_precision"
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATIONS = 8
KEY = ("network", "images", "count", "bits", "plan")


def made(name: str, teacher: Teacher, images: str, count: int) -> ImageSet:
    """Images to measure and to calibrate with."""
    if images == "real":
        return shared.training_images(name, count)
    section = practical_recipe("w8a8").synthesize
    settings = {key: value for key, value in section.items() if key not in ("method", "count")}
    return emptyset.synthesize(teacher, images, count, seed=0, **settings)


def logits_of(predict: Predict, images: ImageSet) -> Tensor:
    """``(N, K)`` logits of all images."""
    with torch.no_grad():
        return torch.cat([predict(batch.images) for batch in images.batches(256)])


def top1(logits: Tensor, labels: Tensor) -> float:
    """Right answers [%]."""
    return round(100 * (logits.argmax(1) == labels).double().mean().item(), 2)


def measured(
    teacher: Teacher,
    images: ImageSet,
    test: ImageSet,
    teacher_logits: Tensor,
    overrides: dict[str, str],
) -> dict[str, Any]:
    """The file of one plan: top-1, divergence from the teacher, certificate, size."""
    student = emptyset.prepare(teacher, f"w8a{ACTIVATIONS}", overrides=overrides)
    emptyset.refine(student, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        artefact = emptyset.export(student, path)
        certificate = emptyset.certify(path, student, images, simulation=artefact.simulation)
        logits = logits_of(OnnxClassifier(path), test)
    assert test.targets is not None
    return {
        "top1": top1(logits, test.targets),
        "kl_on_test_images": round(divergence(teacher_logits, logits).mean().item(), 5),
        "certificate": certificate.holds,
        "integer_share": round(artefact.integer_share, 3),
        "file_kilobytes": round(artefact.size_bytes / 1000, 1),
    }


def facts(plan: Allocation) -> dict[str, Any]:
    """What a plan costs, and what was predicted of it."""
    widths = Counter(text.partition("a")[0] for text in plan.overrides.values())
    return {
        "average_bits": round(plan.average_bits, 3),
        "weights_kilobytes_in_file": round(plan.size_bytes / 1000, 1),
        "weights_kilobytes_packed": round(plan.packed_bytes / 1000, 1),
        "layers": ", ".join(f"{count} {width}" for width, count in sorted(widths.items())),
        "kl_predicted": round(plan.predicted, 5),
    }


def rows_of(
    name: str, source: str, count: int, bits: list[int], there: set[tuple[Any, ...]]
) -> list[dict[str, Any]]:
    """Every row that is not there yet, written as soon as it is measured."""
    wanted = [
        (width, plan)
        for width in bits
        for plan in ("uniform", "mixed")
        if (name, source, count, width, plan) not in there
    ]
    if not wanted:
        return []
    teacher, test = shared.load(name), shared.labelled_images(name)
    assert test.targets is not None
    teacher_logits = logits_of(predictor(teacher), test)
    float_top1 = top1(teacher_logits, test.targets)
    images = made(name, teacher, source, count)
    start = time.perf_counter()
    found = emptyset.mixed_precision(
        teacher, images, f"w8a{ACTIVATIONS}", budget=f"{bits[-1]}bits", weights=WIDTHS, count=count
    )
    seconds = time.perf_counter() - start
    rows = []
    for width, plan in wanted:
        chosen = allocation(found, width, plan)
        result = measured(teacher, images, test, teacher_logits, chosen.overrides)
        row = {
            "network": name, "images": source, "count": count, "bits": width, "plan": plan,
            "float_top1": float_top1, "top1": result.pop("top1"),
        }  # fmt: skip
        row["lost"] = round(row["float_top1"] - row["top1"], 2)
        row |= facts(chosen) | result | {"seconds_measuring_layers": round(seconds, 1)}
        print(row, flush=True)
        write([row])
        rows.append(row)
    return rows


def allocation(found: MixedPrecision, width: int, plan: str) -> Allocation:
    """The uniform plan of a width, or the best one whose average is no larger."""
    uniform = found.uniform[f"w{width}a{ACTIVATIONS}"]
    return uniform if plan == "uniform" else found.within(f"{width}bits")


def read() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows that are there."""
    path = RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {tuple(row[key] for key in KEY): row for row in rows}


def write(rows: list[dict[str, Any]]) -> None:
    """The committed table, older rows kept."""
    kept = read() | {tuple(row[key] for key in KEY): row for row in rows}
    ordered = [kept[key] for key in sorted(kept)]
    text = json.dumps(ordered, indent=1) + "\n"
    (RESULTS / f"{NAME}.json").write_text(text, encoding="utf-8")
    columns = list(ordered[0])
    lines = [
        "# Mixed against uniform bits of weights", "",
        f"`python benchmarks/{NAME}.py`: plan `integer`, 8-bit activations, refiner `calibrate`,",
        "seed 0; top-1 [%] of the file in ONNX Runtime. Mixed plans choose 2 to 8 bits in every",
        "layer, on average no more than the uniform plan of the same row's bits. `kl`: divergence",
        "from the teacher [nat]; predicted on the images that are named, the sum of single layers.",
        "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}",
    ]  # fmt: skip
    lines += [f"| {' | '.join(str(row[c]) for c in columns)} |" for row in ordered]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="cifar10_resnet20_akamaster")
    parser.add_argument("--bits", default="3,4,5,6,7,8")
    parser.add_argument("--images", default="zeroq")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--again", action="store_true", help="measure rows that are there again")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    bits = [int(width) for width in options.bits.split(",")]
    there = set() if options.again else set(read())
    for name in options.networks.split(","):
        for source in options.images.split(","):
            rows_of(name, source, options.count, bits, there)


if __name__ == "__main__":
    main()

"""The whole family of image makers with one budget and one student, as `emptyset compare` does it.

    python benchmarks/inversion_family.py [--only METHOD ...] [--threads 2]

Every method makes the same number of images with the same image-iterations, and one student is
trained on them. The comparison is kept in `runs/benchmarks/family/`, so a killed run goes on; its
`compare.yaml` repeats it (`emptyset compare FILE`). Needs `../shared`. Writes
`results/inversion_family.md` and `.json`.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import inversion_cells as cells
import practical_networks as networks
import shared_networks as shared
import torch
from kept_rows import Table

from emptyset.comparison import run_comparison
from emptyset.comparison.settings import Comparison

WORK = Path(__file__).parent.parent / "runs" / "benchmarks" / "family"
COUNT, PER_IMAGE, UPDATES, BITS = 256, 200, 100, "w3a3"
MIXED_IN = "cifar10_resnet32_akamaster"
# MixMix is built on DeepInversion's losses.
CIFAR = cells.DEEP_INVERSION_ON_CIFAR
METHODS: list[dict[str, Any]] = [
    {"method": "noise"},
    {"method": "zeroq"},
    # On the statistics of the batch, with cross-entropy on random labels.
    {"method": "zeroq", "label": "zeroq+il", **cells.IMAGES["zeroq+il"].settings, "steps": None},
    {"method": "dffg"},
    {"method": "dffg", "label": "dffg.2-harvests", "snapshots": 2},
    {"method": "knowledge_within"},
    {"method": "deep_inversion", **CIFAR, "low_resolution_share": 0.0},
    {"method": "dsg", "roll": 2, "correlation_weight": 0.0},
    {"method": "intraq"},
    {"method": "mixmix", **CIFAR},
    {"method": "genie_d"},
    {"method": "hast"},
]
TABLE = Table(
    "inversion_family",
    ("network", "images"),
    "The family of image makers, one budget, one student",
    (
        f"`python benchmarks/inversion_family.py`: {COUNT} images each, {PER_IMAGE}",
        "image-iterations per image, every other setting the method's own for CIFAR (`dsg` and",
        "`mixmix` have none: shifts of 2 pixels; `mixmix` as `deep_inversion`); students on plan",
        f"`every_layer` at {BITS}, calibrated, then `distill`, preset `learned`, {UPDATES} updates",
        "of 128. Top-1 [%] of all 10,000 test images, last state, one seed. `mixmix` also asks the",
        "ResNet-32 of the same author. `bn_distance` and similarities as in",
        "`inversion_accuracy.md`, in batches of `distance_batch`. Images per second: one thread",
        "beside other work.",
    ),
)


def teacher_section(network: str) -> dict[str, Any]:
    """A recipe's section `teacher`."""
    about = shared.NETWORKS[network]
    return {
        "name": "file:", "model": "networks:load",
        "model_args": {"path": str(networks.WEIGHTS / f"{network}.safetensors")},
        "input": f"3x{about.size}x{about.size}",
        "mean": [v / 255 for v in about.mean], "std": [v / 255 for v in about.std],
    }  # fmt: skip


def compared(network: str, only: list[str]) -> Comparison:
    """What is compared."""
    chosen = [
        {key: value for key, value in method.items() if value is not None}
        for method in METHODS
        if not only or method.get("label", method["method"]) in only
    ]
    for method in chosen:
        if method["method"] == "mixmix":
            method["teachers"] = [teacher_section(MIXED_IN)]
    return Comparison.parse(
        {
            "teacher": teacher_section(network),
            "methods": chosen,
            "count": COUNT,
            "budget": {"image_iterations": COUNT * PER_IMAGE},
            "labelled": str(networks.DATA / shared.NETWORKS[network].data / "test.npz"),
            "real": str(networks.real_images(network, COUNT, WORK)),
            "plan": {"name": "every_layer", "bits": BITS},
            "refine": [
                {"method": "calibrate"},
                {"method": "distill", "preset": "learned", "steps": UPDATES, "batch_size": 128},
            ],
        }
    )


def row_of(network: str, row: dict[str, Any]) -> dict[str, Any]:
    """What of a row of `compare.json` stands in the table."""
    about, quality, student = row["images"], row["quality"], row["student"]
    if student is None:
        return {"network": network, "images": row["name"], "fault": row["fault"]}
    before, after = (100 * student[name]["top1"] for name in ("teacher", "quantized"))
    distance, diversity = quality["distance"], quality["diversity"]
    return {
        "network": network, "images": row["name"],
        "float_inputs": len(student["float_inputs"]), "float_top1": round(before, 2),
        "last": round(after, 2), "lost": round(before - after, 2),
        "agreement": round(100 * student["agreement"]["share"], 2),
        "steps": about.get("steps"), "image_iterations": about.get("image_iterations"),
        "images_per_second": round(about["per_second"], 2) if about.get("per_second") else None,
        "bn_distance": round(distance["sum_l2"], 2) if distance else None,
        "distance_batch": distance["batch_size"] if distance else None,
        "similarity": round(diversity["similarity"], 3),
        "similarity_in_class": round(diversity["similarity_within_class"] or 0.0, 3),
        "class_agreement": diversity["class_agreement"],
    }  # fmt: skip


def main() -> None:
    """Work through the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="methods, by their labels")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path[:0] = networks.search_path().split(os.pathsep)
    network = cells.AKA
    out = WORK / "-".join([network, *options.only])
    found = run_comparison(compared(network, options.only), out)
    TABLE.write(*(row_of(network, row) for row in found.table["rows"]))


if __name__ == "__main__":
    main()

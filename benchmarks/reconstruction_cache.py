"""Reconstruction of ResNet-50 within a memory budget: peak memory, and the same result.

    python benchmarks/reconstruction_cache.py [--memory 8,20] [--images 1024] [--blocks 4]
                                              [--iterations 20] [--threads 2]

Genie-M at w4a4 on plan `edges_8bit`, 224 x 224 photos of `imagenet_val1300`, the first blocks (they
are the largest), a few iterations each. Every budget [GB] is a process of its own; its peak is what
the system counted (resident set, mapped files included). The result is the digest of everything
that was learnt: codes, scales, rounding. The largest budget holds all caches in memory and is what
the others are compared with. Needs `../shared`. Writes `results/reconstruction_cache.md` and
`.json`.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import shared_networks as shared
import torch
from kept_rows import RESULTS, Table

import emptyset
from emptyset.monitor import SilentMonitor, State

NETWORK = "imagenet_resnet50_pqf_large"
KEY = ("network", "memory_gb", "images", "blocks", "iterations", "threads")
ABOUT = (
    "`python benchmarks/reconstruction_cache.py`: Genie-M, w4a4, plan `edges_8bit`, 224 x 224,",
    "first blocks only. `memory_gb` is the setting `memory`; `peak_gb` the largest resident set of",
    "the process, mapped files included; `digest` is that of all codes, scales and roundings that",
    "were learnt. Budgets with the same digest have the same result.",
)


class EnoughError(Exception):
    """All blocks that were asked for are done."""


class FirstBlocks(SilentMonitor):
    """Stops after some units, and keeps a digest of what they learnt."""

    def __init__(self, blocks: int) -> None:
        self._left = blocks
        self.digest = hashlib.sha256()
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Sizes and places of the caches are told so."""
        self.notes.append(message)
        print(message, file=sys.stderr, flush=True)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Look at what a finished unit is worth keeping."""
        if not key.startswith("genie.unit"):
            return
        for name, value in sorted(state().items()):
            self.digest.update(name.encode())
            self.digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        self._left -= 1
        if self._left == 0:
            raise EnoughError


def child(options: argparse.Namespace) -> None:
    """One budget; prints what was found."""
    torch.set_num_threads(options.threads)
    teacher = shared.load(NETWORK)
    images = shared.labelled_images(NETWORK, options.images)
    student = emptyset.prepare(teacher, "w4a4", plan="edges_8bit", batch_norm="frozen")
    emptyset.refine(student, images.subset(torch.arange(min(64, len(images)))))
    monitor, start = FirstBlocks(options.blocks), time.perf_counter()
    with suppress(EnoughError):
        emptyset.refine(
            student, images, "genie", steps=options.iterations, memory=options.child,
            precision="float32", monitor=monitor,
        )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    caches = next(note for note in monitor.notes if "inputs and targets" in note)
    print(json.dumps({
        "peak_gb": round(peak / 2**30, 2), "seconds": round(time.perf_counter() - start, 1),
        "digest": monitor.digest.hexdigest()[:16], "caches": caches.partition(": ")[2],
    }))  # fmt: skip


def main() -> None:
    """Run all budgets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="8,20", help="budgets [GB]")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options)
        return
    shape = {name: getattr(options, name) for name in ("images", "blocks", "iterations", "threads")}
    rows: list[dict[str, Any]] = []
    for memory in map(float, options.memory.split(",")):
        command = [sys.executable, "-W", "ignore", __file__, f"--child={memory}"]
        command += [f"--{name}={value}" for name, value in shape.items()]
        surroundings = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, env=surroundings
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append({"network": NETWORK, "memory_gb": memory, **shape, **found})
        print(rows[-1], flush=True)
    largest = max(rows, key=lambda row: row["memory_gb"])
    for row in rows:
        row["same_as_largest"] = row["digest"] == largest["digest"]
        row["within_budget"] = row["peak_gb"] <= row["memory_gb"]
    title = "Reconstruction within a memory budget"
    Table("reconstruction_cache", KEY, title, ABOUT, options.results).write(*rows)


if __name__ == "__main__":
    main()

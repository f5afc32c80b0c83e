"""Genie-M per optimizer step: ours against a plain eager loop of the same mathematics.

    python benchmarks/reconstruction_speed.py [--steps 61] [--images 1024] [--threads 2]

ResNet-20 for CIFAR-10, all blocks, w4a4 on plan `edges_8bit`, BatchNorm as it is, batches of 32,
random choice of inputs and of what every quantizer leaves out. Every side is a process of its own;
they work by turns of ten steps, so what else the machine does hits all of them. A turn in which a
block begins also holds its caches and, for ours, compiling: it is left out of the time per step and
told apart. Ours decides as for the published 20,000 steps what it compiles; `float32` is the same
mathematics to the letter, `as it is` multiplies in bfloat16 where the hardware does. Needs
`../shared`. Writes `results/reconstruction_speed.md` and `.json`.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import shared_networks as shared
import torch
from inversion_paced import Job, Turns, run_by_turns
from kept_rows import RESULTS, Table
from reconstruction_plain_loop import BATCH, hard_output, learn, quantized_unit, units_of

import emptyset
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.monitor import SilentMonitor
from emptyset.reconstruction import chain

NETWORK = "cifar10_resnet20_akamaster"
PUBLISHED_STEPS, PIECE = 20_000, 10
SIDES = {
    "ours": "emptyset `genie`, as it is",
    "ours_float32": "emptyset `genie`, `precision: float32`",
    "plain": "plain eager loop",
}
KEY = ("network", "side", "images", "steps", "threads")
ABOUT = (
    "`python benchmarks/reconstruction_speed.py`: w4a4 on plan `edges_8bit`, all blocks, batch 32;",
    "processes of their own by turns of ten steps. `milliseconds`: sum over the blocks of the",
    "median step, divided by their number; `cpu_milliseconds`: of all threads, which others",
    "disturb least. `faster` is the plain loop's time over ours. `seconds_apart`: turns in which a",
    "block begins, with caches and compiling, for all blocks together. The goal is 3.",
)


class PacedMonitor(SilentMonitor):
    """Every optimizer step at its turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._done = turns, 0

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Called after each step, and once more at the end of a block."""
        if what == "genie" and done > self._done:
            self._done = done
            self._turns.step_done()


def child(options: argparse.Namespace) -> None:
    """One of the jobs."""
    turns = Turns()
    torch.set_num_threads(options.threads)
    teacher = shared.load(NETWORK)
    images = shared.training_images(NETWORK, options.images)
    if options.child == "plain":
        torch.manual_seed(0)
        left = plain(teacher.module, images.images, options.steps, turns)
        turns.finish(error_left=round(statistics.geometric_mean(left), 3))
        return
    keep_freed_memory()
    decided = chain.worth_compiling

    def as_published(works: Sequence[Any], *machine: Any) -> tuple[bool, ...]:
        return decided([replace(work, steps=options.planned) for work in works], *machine)

    chain.worth_compiling = as_published  # type: ignore[assignment]
    student = emptyset.prepare(teacher, "w4a4", plan="edges_8bit", batch_norm="frozen")
    emptyset.refine(student, images)
    precision = "float32" if options.child == "ours_float32" else "auto"
    turns.begin()
    emptyset.refine(
        student, images, "genie", steps=options.steps, batch_size=BATCH, precision=precision,
        check_every=max(100, options.steps), monitor=PacedMonitor(turns),
    )  # fmt: skip
    turns.finish()


def plain(network: Any, images: torch.Tensor, steps: int, turns: Turns) -> list[float]:
    """The plain loop down all units."""
    units, left = units_of(network), []
    # Edges have 8 bits, and so has what the second layer reads.
    bits: list[list[tuple[int, int | None]]] = [[(4, 4), (4, 4)] for _ in units]
    bits[0], bits[1][0], bits[-1] = [(8, None)], (4, 8), [(8, 8)]
    turns.begin()
    x = x_float = images
    for unit, widths in zip(units, bits, strict=True):
        with torch.no_grad():
            y = torch.cat([unit(piece) for piece in x_float.split(256)])
        made = quantized_unit(unit, x_float[:256], widths)
        left.append(learn(made, x, x_float, y, steps, lambda n: turns.steps(range(n))))
        x, x_float = hard_output(made, x), y
    return left


def step_times(job: Job, steps: int, which: int) -> tuple[list[float], float]:
    """Median time of a step in each unit, and all time of turns in which a unit begins [s].

    Args:
        job: Finished.
        steps: Of each unit.
        which: 1: time that passed; 2: processor time.
    """
    inside: dict[int, list[float]] = {}
    apart, done = 0.0, 0
    for turn in job.turns:
        first, done = done, done + turn[0]
        if first % steps == 0 or first // steps != (done - 1) // steps:
            apart += turn[which]
        else:
            inside.setdefault(first // steps, []).append(turn[which] / turn[0])
    return [statistics.median(inside[unit]) for unit in sorted(inside)], apart


def main() -> None:
    """Run all sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=61, help="of every block")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--planned", type=int, default=PUBLISHED_STEPS, help="ours compiles what pays for so many"
    )
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2 * PIECE + 1:
        parser.error(f"--steps must be at least {2 * PIECE + 1}: a turn has {PIECE}")
    if options.child:
        child(options)
        return
    count = len(units_of(shared.load(NETWORK).module))
    shape = [
        f"--{name}={getattr(options, name)}" for name in ("steps", "images", "threads", "planned")
    ]
    own = [sys.executable, "-W", "ignore", __file__, *shape]
    threads = {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    jobs = [
        Job(side, [*own, f"--child={side}"], options.steps * count, BATCH, threads)
        for side in options.sides.split(",")
    ]
    load = os.getloadavg()[0]
    run_by_turns(jobs, PIECE * BATCH)
    rows = []
    for job in jobs:
        times, apart = step_times(job, options.steps, 1)
        cpu, _ = step_times(job, options.steps, 2)
        rows.append({
            "network": NETWORK, "side": job.name, "images": options.images,
            "steps": options.steps, "threads": options.threads, "blocks": len(times),
            "milliseconds": round(1e3 * statistics.mean(times), 3),
            "cpu_milliseconds": round(1e3 * statistics.mean(cpu), 3),
            "seconds_apart": round(apart, 1), "load_average_before": round(load, 2),
            "by_block": " ".join(f"{1e3 * t:.2f}" for t in times), **job.facts,
        })  # fmt: skip
    last = rows[-1]
    for row in rows:
        row["faster"] = round(last["milliseconds"] / row["milliseconds"], 2)
        row["faster_in_cpu_time"] = round(last["cpu_milliseconds"] / row["cpu_milliseconds"], 2)
        print({SIDES[row["side"]]: row}, flush=True)
    title = "Speed of block reconstruction per optimizer step"
    Table("reconstruction_speed", KEY, title, ABOUT, options.results).write(*rows)


if __name__ == "__main__":
    main()

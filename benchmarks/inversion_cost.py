"""What a set of images costs: image-iterations, time and peak memory of `emptyset synthesize`.

    python benchmarks/inversion_cost.py [--jobs dffg_5120,zeroq_5120,dffg_50000,intraq_50000]
        [--threads 2]

Every job is the whole command in a process of its own. Peak memory is that of the process
(resident set, as the kernel counts it) and, sampled twice a second, of it and all its children
together, shared pages counted once: the compiler works in children. Jobs of 50,000 images make few
steps; they show that memory does not grow with the images. Needs `../shared/weights`; Linux.

Writes `results/inversion_cost.md` and `.json`; jobs that were not run again stay.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shared_networks as shared

from emptyset.registry import synthesizers

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "inversion_cost.json"
NETWORK = "cifar10_resnet20_akamaster"
KEY = ("job", "threads")


@dataclass(frozen=True)
class Made:
    """One set of images.

    Attributes:
        method: Registered name.
        count: Images.
        settings: Where they differ from the method's defaults.
    """

    method: str
    count: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        """The method's settings."""
        return synthesizers.get(self.method).config(**self.settings)

    def image_iterations(self) -> int:
        """Images that are optimised, times the steps of each."""
        config = self.config()
        harvests = int(getattr(config, "snapshots", 1))
        return -(-self.count // harvests) * int(config.steps)


JOBS = {
    "dffg_5120": Made("dffg", 5_120),
    "zeroq_5120": Made("zeroq", 5_120, {"steps": 20}),
    "dffg_512": Made("dffg", 512, {"steps": 10, "burn_in": 0.0}),
    "dffg_50000": Made("dffg", 50_000, {"steps": 10, "burn_in": 0.0}),
    "intraq_50000": Made("intraq", 50_000, {"steps": 2}),
}
DEFAULT = "dffg_5120,dffg_512,dffg_50000,intraq_50000"


class PeakOfTree:
    """Samples the memory of a process and all its descendants [bytes], each shared page once."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more samples."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(_proportional_bytes, self._tree(self._pid))))

    def _tree(self, pid: int) -> list[int]:
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except OSError:
            return [pid]
        return [pid, *(found for child in text.split() for found in self._tree(int(child)))]


def _proportional_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines() if line.startswith("Pss:")]
    return 1024 * int(lines[0][1]) if lines else 0


def run(name: str, threads: int, folder: Path) -> dict[str, Any]:
    """One command, from start to end."""
    job, about = JOBS[name], shared.NETWORKS[NETWORK]
    weights = shared.SHARED / "weights"
    mean, std = (",".join(str(v / 255) for v in values) for values in (about.mean, about.std))
    command = [
        sys.executable, "-m", "emptyset.cli.app", "synthesize", "file:",
        "--model", "networks:load",
        "--model-args", json.dumps({"path": str(weights / f"{NETWORK}.safetensors")}),
        "--input", f"3x{about.size}x{about.size}", "--mean", mean, "--std", std,
        "--method", job.method, "--count", str(job.count), "--seed", "0",
        "--device", "cpu", "--out", str(folder / name), "-q",
    ]  # fmt: skip
    for key, value in job.settings.items():
        command += ["--set", f"{key}={value}"]
    environment = {
        **os.environ, "PYTHONPATH": str(weights), "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }  # fmt: skip
    load = round(os.getloadavg()[0], 2)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    tree = PeakOfTree(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    tree.stop()
    if process.returncode:
        raise SystemExit(f"{name}: the command ended with code {process.returncode}.")
    card = json.loads((folder / name / "card.json").read_text(encoding="utf-8"))
    written = sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file())
    shutil.rmtree(folder / name)
    made = card["history"][-1]
    return {
        "job": name, "method": job.method, "images": card["count"], "steps": job.config().steps,
        "image_iterations": job.image_iterations(), "seconds": round(seconds, 1),
        "peak_process_mb": round(usage.ru_maxrss / 1024),
        "peak_with_children_mb": round(tree.peak / 2**20),
        "images_mb": round(written / 2**20), "compiled": made["compiled"], "dtype": made["dtype"],
        "threads": threads, "load_average_before": load,
    }  # fmt: skip


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The committed table; jobs that were not run stay as they were."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    again = {tuple(row[k] for k in KEY) for row in rows}
    merged = [row for row in old if tuple(row[k] for k in KEY) not in again] + list(rows)
    merged.sort(key=lambda row: (list(JOBS).index(row["job"]), row["threads"]))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"network": NETWORK, "rows": merged}, indent=1) + "\n", "utf-8")
    text = "\n".join(_lines(merged)) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    titles = {
        "job": "job", "images": "images", "steps": "steps", "image_iterations": "image-iterations",
        "seconds": "seconds", "peak_process_mb": "peak, process [MB]",
        "peak_with_children_mb": "peak, with children [MB]", "images_mb": "images on disk [MB]",
        "compiled": "compiled", "threads": "threads", "load_average_before": "load before",
    }  # fmt: skip
    lines = [
        "# Cost of a set of images",
        "",
        f"`{NETWORK}`, `python benchmarks/inversion_cost.py`: the whole command "
        "`emptyset synthesize`, from start to end. Where fewer steps are made than the method's "
        "own number, the row tells of memory, not of time.",
        "",
        f"| {' | '.join(titles.values())} |",
        f"|{'---|' * len(titles)}",
    ]
    lines += [f"| {' | '.join(_text(row[name]) for name in titles)} |" for row in rows]
    dffg = Made("dffg", 5_120).image_iterations()
    lines += [
        "",
        "Image-iterations of 5,120 images with each method's own settings:",
        "",
        "| method | image-iterations | DFFG needs this share |",
        "|---|---|---|",
    ]
    for method in ("dffg", "zeroq", "hast", "intraq"):
        needed = Made(method, 5_120).image_iterations()
        lines.append(f"| {method} | {needed:,} | 1/{needed / dffg:g} |")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Run the jobs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", default=DEFAULT, help=", ".join(JOBS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=RESULTS, help="JSON; a page beside it")
    options = parser.parse_args()
    for name in options.jobs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write([run(name, options.threads, Path(folder))], options.table)


if __name__ == "__main__":
    main()

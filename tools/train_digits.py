"""Train the two teachers that ship with emptyset, and write them with their digits and cards.

    python tools/train_digits.py                  # both teachers and the digits, minutes on 2 cores
    python tools/train_digits.py --out /tmp/again # elsewhere, to compare

Data: the handwritten digits that scikit-learn ships (1,797 real scans, 8×8, 17 grey levels), made
16×16 by bilinear interpolation. A seeded permutation gives 1,000 digits to train on and 797 that
are held out: they are read once, at the end, to write the accuracy into the card. Nothing was
chosen by looking at them: the last step's weights are the ones that ship.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from emptyset.teachers.digits_networks import DigitsMobileNet, DigitsResNet

ASSETS = Path(__file__).resolve().parent.parent / "src" / "emptyset" / "assets"
NETWORKS = {"digits-resnet": DigitsResNet, "digits-mobilenet": DigitsMobileNet}
SIDE = 16
TRAIN_COUNT = 1000
SPLIT_SEED = 0
TRAIN_SEED = 1
EPOCHS = 60
BATCH_SIZE = 50
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
MOMENTUM = 0.9
# One: sums then have one order, and the weights do not depend on the number of cores.
THREADS = 1


def load_scans() -> tuple[Tensor, Tensor]:
    """Every digit as ``(1797, 1, 16, 16)`` uint8, and its label ``(1797,)``."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] / 16
    large = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large.clamp(0, 1).mul(255).round().byte(), torch.from_numpy(digits.target).long()


def split() -> dict[str, Tensor]:
    """Indices into scikit-learn's order, sorted, of both parts."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return {
        "train": order[:TRAIN_COUNT].sort().values,
        "held_out": order[TRAIN_COUNT:].sort().values,
    }


def distort(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate up to 12°, scale up to 10 %, shift up to 1.5 pixels: ``(N, 1, H, W)`` in 0..1."""
    count = len(pixels)

    def spread(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, scale = torch.deg2rad(spread(12.0)), 1 + spread(0.1)
    shift_x, shift_y = spread(3.0 / SIDE), spread(3.0 / SIDE)
    first_row = torch.stack([angle.cos() * scale, -angle.sin() * scale, shift_x], dim=1)
    second_row = torch.stack([angle.sin() * scale, angle.cos() * scale, shift_y], dim=1)
    theta = torch.stack([first_row, second_row], dim=1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", align_corners=False)


def train(
    network: nn.Module, pixels: Tensor, labels: Tensor, mean: float, std: float, epochs: int
) -> None:
    """Stochastic gradient descent with one warm-up and a cosine decay; in place."""
    steps = epochs * (len(pixels) // BATCH_SIZE)
    optimizer = torch.optim.SGD(
        network.parameters(), PEAK_LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(TRAIN_SEED)
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(pixels), generator=generator).split(BATCH_SIZE):
            images = (distort(pixels[chosen], generator) - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if (epoch + 1) % 10 == 0:
            print(f"  epoch {epoch + 1:3d} of {epochs}: training loss {total / len(pixels):.4f}")


@torch.no_grad()
def top1(network: nn.Module, pixels: Tensor, labels: Tensor, mean: float, std: float) -> float:
    """Share of correct digits, in percent."""
    network.eval()
    return (network((pixels - mean) / std).argmax(1) == labels).float().mean().item() * 100


def write_digits(folder: Path, scans: Tensor, labels: Tensor) -> None:
    """Both parts as npz: ``images`` uint8 ``(N, H, W, 1)``, ``labels``, ``indices``."""
    for part, indices in split().items():
        np.savez_compressed(
            folder / f"digits_{part}.npz",
            images=scans[indices].permute(0, 2, 3, 1).contiguous().numpy(),
            labels=labels[indices].numpy(),
            indices=indices.numpy(),
        )


def train_one(name: str, folder: Path, scans: Tensor, labels: Tensor, epochs: int) -> None:
    """Train, measure, and write the weights and the card of one teacher."""
    parts = split()
    pixels = scans.float() / 255
    seen = pixels[parts["train"]]
    mean, std = round(seen.mean().item(), 4), round(seen.std().item(), 4)
    torch.manual_seed(TRAIN_SEED)
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    print(f"{name}: {sum(p.numel() for p in network.parameters())} parameters")
    train(network, seen, labels[parts["train"]], mean, std, epochs)
    accuracy = {
        part: round(top1(network, pixels[chosen], labels[chosen], mean, std), 2)
        for part, chosen in parts.items()
    }
    print(f"  top-1: {accuracy}")
    weights = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
    weights.chmod(0o644)  # safetensors makes files that only their owner can read
    card = {
        "name": name,
        "architecture": f"emptyset.teachers.digits_networks:{type(network).__name__}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "input": {"shape": [1, SIDE, SIDE], "mean": [mean], "std": [std]},
        "classes": [str(digit) for digit in range(10)],
        "held_out_top1_percent": accuracy["held_out"],
        "train_top1_percent": accuracy["train"],
        "data": {
            "what": "handwritten digits, 1,797 scans of 8x8 pixels with 17 grey levels, made "
            "16x16 by bilinear interpolation",
            "from": "scikit-learn load_digits: the test part of 'Optical Recognition of "
            "Handwritten Digits', UCI Machine Learning Repository, doi:10.24432/C50P49",
            "licence": "CC BY 4.0, see digits_licence.txt",
            "split": f"permutation with seed {SPLIT_SEED}: {TRAIN_COUNT} to train on "
            f"(digits_train.npz), {len(parts['held_out'])} held out (digits_held_out.npz); "
            "`indices` in both files count in scikit-learn's order",
            "limits": "the data do not say who wrote a digit, so both parts share their writers",
        },
        "training": {
            "script": "tools/train_digits.py",
            "again": "python tools/train_digits.py",
            "seed": TRAIN_SEED,
            "epochs": epochs,
            "batch_size": BATCH_SIZE,
            "optimizer": f"SGD, Nesterov momentum {MOMENTUM}, one cycle up to learning rate "
            f"{PEAK_LEARNING_RATE}, weight decay {WEIGHT_DECAY}",
            "augmentation": "rotation to 12 degrees, scale to 10 %, shift to 1.5 pixels",
            "chosen_by": "nothing: the weights after the last step",
            "torch": torch.__version__.split("+")[0],
            "threads": THREADS,
        },
        "licence": "Apache-2.0 (the weights)",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Read the options and do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write into")
    parser.add_argument("--only", choices=sorted(NETWORKS), help="train one teacher")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    scans, labels = load_scans()
    write_digits(options.out, scans, labels)
    for name in [options.only] if options.only else sorted(NETWORKS):
        train_one(name, options.out, scans, labels, options.epochs)


if __name__ == "__main__":
    main()

"""Image sets, student recipes and cells of the tables that `inversion_accuracy.py` measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from emptyset.quantizers.bits import Bits

AKA = "cifar10_resnet20_akamaster"
C10 = "cifar10_resnet20_distiller"
C100 = "cifar100_resnet20_distiller"
PQF = "imagenet_resnet18_pqf"
# No ReLU after their residual additions: without `strict` some inputs would stay in float.
STRICT = (C10, C100)
# DeepInversion's numbers for CIFAR-10, but for its stages; defaults are those for ImageNet, whose
# shift goes round an image of 32 x 32.
DEEP_INVERSION_ON_CIFAR: dict[str, Any] = {
    "learning_rate": 0.05, "statistics_weight": 10.0, "first_layer_multiplier": 1.0,
    "smoothness_weight": 2.5e-5, "norm_weight": 0.0, "roll": 2, "flip": 0.0, "clip": False,
    "warm_up": 0,
}  # fmt: skip
# IntraQ's protocol: 151 epochs of 200 updates of 256 images.
PUBLISHED_UPDATES = 30_200


@dataclass(frozen=True)
class Images:
    """A set of synthetic images.

    Attributes:
        method: Registered name.
        count: Images.
        settings: Where they differ from the method's defaults.
    """

    method: str
    count: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Attributes:
        preset: Of the refiner `distill`.
        batch_norm: Of the student.
        fraction: Of the published number of updates; 0: the preset's own number.
        more: Further settings, by weight bits or for all (key 0).
    """

    preset: str
    batch_norm: str
    fraction: float = 0.0
    more: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def settings(self, bits: str) -> dict[str, Any]:
        """What `DistillConfig` takes."""
        more = {**self.more.get(0, {}), **self.more.get(Bits.parse(bits).weights, {})}
        if self.fraction:
            more = {"steps": round(PUBLISHED_UPDATES * self.fraction), "batch_size": 256, **more}
        return {"preset": self.preset, **more}


@dataclass(frozen=True)
class Cell:
    """One row of a table."""

    network: str
    images: str
    bits: str
    recipe: str
    seed: int = 0
    plan: str = "every_layer"

    def describe(self) -> str:
        """On one line."""
        return f"{self.network} | {self.images} | {self.bits} | {self.recipe} | seed {self.seed}"


_IL = {
    "steps": 250, "class_weight": 1.0, "statistics": "batch", "schedule": "cosine",
    "batch_size": 256,
}  # fmt: skip
IMAGES = {
    "dffg": Images("dffg", 5120),
    # ZeroQ on statistics of the batch, with cross-entropy on random labels, converged.
    "zeroq+il": Images("zeroq", 1280, {**_IL, "learning_rate": 0.1, "clip": True}),
    # ZeroQ as published, one batch to calibrate with.
    "zeroq 64": Images("zeroq", 64),
    # The same on the cosine spectrum.
    "spectrum": Images("zeroq", 1280, {**_IL, "learning_rate": 0.05, "spectrum": 1.0}),
    "spectrum 1.5": Images("zeroq", 1280, {**_IL, "learning_rate": 0.05, "spectrum": 1.5}),
    # DFFG on the spectrum, every start harvested twice.
    "harvested spectrum": Images(
        "dffg", 5120, {"spectrum": 1.0, "step_size": 0.05, "steps": 200, "snapshots": 2}
    ),
}
# As many as reconstruction takes.
IMAGES["harvested spectrum 1024"] = replace(IMAGES["harvested spectrum"], count=1024)
# DFFG's sweep: 1,280 images of 128 starts. It began with the momentum of MI-FGSM's paper, 1, and
# one setting was changed at a time; the best of it, momentum 0.9, became the default.
SMALL = {"batch_size": 128, "steps": 200, "momentum": 1.0}


def _dffg(name: str, **change: Any) -> str:
    """Registers images of DFFG and gives their name in the tables."""
    count = change.pop("count", 1280)
    IMAGES[f"dffg, {name}"] = Images("dffg", count, {**SMALL, **change})
    return f"dffg, {name}"


_CALM = {"momentum": 0.9}
DEFAULTS = _dffg("momentum 0.9", **_CALM)
SWEEP = [
    _dffg("base"),
    *(_dffg(f"step size {size}", step_size=size) for size in (0.02, 0.05, 0.2)),
    *(_dffg(f"{steps} steps", steps=steps) for steps in (50, 100, 500)),
    _dffg("momentum 0.0", momentum=0.0),
    DEFAULTS,
    *(_dffg(f"class weight {weight}", class_weight=weight) for weight in (0.1, 10.0)),
    *(_dffg(f"momentum 0.9, step size {size}", step_size=size, **_CALM) for size in (0.05, 0.2)),
    *(_dffg(f"momentum 0.9, {n} harvests", snapshots=n, **_CALM) for n in (2, 5, 20)),
    _dffg("momentum 0.9, burn-in 0.8", burn_in=0.8, **_CALM),
    _dffg("momentum 0.9, restart", restart=True, **_CALM),
    _dffg("momentum 0.9, low-pass 10", low_pass=10.0, **_CALM),
    _dffg("momentum 0.9, spectrum", spectrum=1.0, step_size=0.05, **_CALM),
]
ADAM = {
    rate: _dffg(f"adam {rate}", update="adam", step_size=rate) for rate in (0.05, 0.1, 0.2, 0.4)
}
ADAM_RATE = 0.2  # the best of the sweep, on both networks
# Equal cost, 25,600 image-iterations: harvesting against none.
NO_HARVEST = [
    _dffg("momentum 0.9, no harvest, 20 steps", snapshots=1, steps=20, **_CALM),
    _dffg("momentum 0.9, no harvest, 128 images", snapshots=1, count=128, **_CALM),
]

RECIPES = {
    "published, 1/100": Recipe("published", "frozen", fraction=0.01),
    # The divergence as a mean over classes too, as GDFQ has it: summed over them, as IntraQ has it,
    # it destroys the CIFAR-10 network within ten updates.
    **{
        f"published, 1/{part}, weak KD": Recipe(
            "published", "frozen", fraction=1 / part, more={0: {"kd_reduction": "mean"}}
        )
        for part in (100, 10)
    },
    # Ours: the fewer bits, the longer.
    "learned": Recipe(
        "learned", "fold",
        more={
            0: {"batch_size": 128, "mixing": "mixup"},
            3: {"steps": 1500}, 4: {"steps": 1000}, 5: {"steps": 500},
        },
    ),
    "learned, 100 updates": Recipe("learned", "fold", more={0: {"steps": 100, "batch_size": 128}}),
}  # fmt: skip
OURS, THEIRS, QUICK = "learned", "published, 1/100", "learned, 100 updates"
WEAK, TENTH = "published, 1/100, weak KD", "published, 1/10, weak KD"
BEST = "harvested spectrum"
BITS = ("w3a3", "w4a4", "w5a5")

# In order of importance: a table that is not finished has the first ones.
ACCURACY = [
    *(Cell(AKA, BEST, bits, OURS) for bits in BITS),
    *(Cell(AKA, "real 5120", bits, OURS) for bits in BITS),
    *(Cell(AKA, "dffg", bits, WEAK) for bits in BITS),
    Cell(AKA, "dffg", "w4a4", THEIRS),
    *(Cell(C100, BEST, bits, OURS) for bits in BITS),
    *(Cell(C100, "real 5120", bits, OURS) for bits in BITS),
    *(Cell(AKA, "real 5120", bits, WEAK) for bits in BITS),
    *(Cell(AKA, "zeroq+il", bits, WEAK) for bits in BITS),
    *(Cell(C100, images, bits, WEAK) for bits in BITS for images in ("dffg", "real 5120")),
    Cell(C100, "dffg", "w4a4", THEIRS),
    *(Cell(AKA, images, "w4a4", TENTH) for images in ("dffg", "real 5120")),
    *(Cell(C10, BEST, bits, OURS) for bits in BITS),
    *(Cell(C10, "real 5120", bits, OURS) for bits in BITS),
    *(Cell(C10, images, bits, WEAK) for bits in BITS for images in ("dffg", "real 5120")),
    # Which exponent, which images.
    *(Cell(AKA, images, "w3a3", OURS) for images in ("spectrum", "spectrum 1.5", "zeroq+il")),
    *(
        Cell(AKA, images, "w3a3", recipe, seed)
        for seed in (1, 2)
        for images, recipe in ((BEST, OURS), ("dffg", WEAK), ("zeroq+il", WEAK))
    ),
    *(
        Cell(AKA, images, bits, recipe, seed)
        for seed in (1, 2)
        for bits in ("w4a4", "w5a5")
        for images, recipe in ((BEST, OURS), ("dffg", WEAK), ("zeroq+il", WEAK))
    ),
]
TABLES = {
    "accuracy": ACCURACY,
    "dffg_sweep": [
        Cell(AKA, images, "w3a3", QUICK) for images in (*SWEEP, *ADAM.values(), *NO_HARVEST)
    ],
    "dffg_ablation": [
        *(Cell(C100, images, "w3a3", QUICK) for images in (DEFAULTS, *ADAM.values())),
        *(
            Cell(network, images, bits, QUICK)
            for network in (AKA, C100)
            for bits in ("w4a4", "w5a5")
            for images in (DEFAULTS, ADAM[ADAM_RATE])
        ),
        # The poster's network; 224 x 224 pixels are work for a GPU.
        *(
            Cell(PQF, images, bits, QUICK)
            for bits in BITS
            for images in (DEFAULTS, ADAM[ADAM_RATE])
            if torch.cuda.is_available()
        ),
    ],
}
TITLES = {
    "accuracy": "Students of synthetic images, points lost against float",
    "dffg_sweep": "DFFG's unpublished settings, swept",
    "dffg_ablation": "DFFG: MI-FGSM against Adam",
}
_COLUMNS = [
    "`bn_distance`: sum over layers of the norms, batches of 256; `similarity`: mean cosine of the",
    "teacher's features over all pairs of images, and within a class. Seconds are those of one",
    "thread beside other work, so they compare with nothing.",
]
ABOUT = {
    "accuracy": [
        "`python benchmarks/inversion_accuracy.py`: top-1 [%] of 10,000 test images, last epoch",
        "first; `best` is the best of three measured epochs. Recipe `learned`: refiner `distill`,",
        "preset `learned`, batches of 128, Mixup. `published, 1/100` and `1/10`: that part of",
        "IntraQ's 30,200 updates of 256, milestones and range updates alike; `weak KD`: the",
        "divergence is a mean over classes too (GDFQ's form), since summed over them (IntraQ's) it",
        "destroys the CIFAR-10 network within ten updates.",
        "`calibrated_only`: ranges of least Lp error, which `learned` starts from. The published",
        "recipe starts from the extremes seen, with which a student calibrated on DFFG's images",
        "has 90.7, 85.9, 50.5 (w5a5, w4a4, w3a3; first 2,000 test images) on CIFAR-10 and 64.1,",
        "40.0, 4.0 on CIFAR-100: so short a training starts far below and has not caught up.",
        *_COLUMNS,
    ],
    "dffg_sweep": [
        "`python benchmarks/inversion_accuracy.py --table dffg_sweep`: 1,280 images of 128 starts,",
        "200 steps, 10 harvests, step size 0.1 and momentum 1 (`base`) where nothing else is said;",
        "then 100 updates of the student at w3a3. Rows without harvest cost as many",
        "image-iterations.",
        *_COLUMNS,
    ],
    "dffg_ablation": [
        "`python benchmarks/inversion_accuracy.py --table dffg_ablation`: equal loss, images,",
        "iterations and harvests (those of the sweep); 100 updates of the student. Adam's learning",
        "rate is swept at w3a3 (CIFAR-10: table `dffg_sweep`), 0.2 taken at 4 and 5 bits.",
        "CLIP similarity: not run, no weights here; `--clip MODEL` adds it to these rows.",
        *_COLUMNS,
    ],
}

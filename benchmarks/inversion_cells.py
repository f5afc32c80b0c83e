"""Image sets, student recipes and cells of the tables that `inversion_accuracy.py` measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emptyset.quantizers.bits import Bits
from emptyset.registry import synthesizers

AKA = "cifar10_resnet20_akamaster"
C10 = "cifar10_resnet20_distiller"
C100 = "cifar100_resnet20_distiller"
# No ReLU after their residual additions: without `strict` some inputs would stay in float.
STRICT = (C10, C100)
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


def image_iterations(name: str) -> int | None:
    """Images times the steps that each was optimised for; None for real images."""
    if name.startswith("real"):
        return None
    images = IMAGES[name]
    entry = synthesizers.get(images.method)
    config = entry.config(**images.settings)
    return images.count * int(config.steps) // int(getattr(config, "snapshots", 1))


IMAGES = {
    "dffg": Images("dffg", 5120),
    "dffg 200": Images("dffg", 1280, {"steps": 200, "batch_size": 256, "snapshots": 5}),
    # ZeroQ on statistics of the batch, with cross-entropy on random labels, converged.
    "zeroq+il": Images(
        "zeroq", 1280,
        {"steps": 250, "class_weight": 1.0, "statistics": "batch", "schedule": "cosine",
         "learning_rate": 0.1, "clip": True, "batch_size": 256},
    ),
}  # fmt: skip
for step_size in (0.02, 0.05, 0.1, 0.2):
    for steps in (100, 200, 500):
        IMAGES[f"dffg, step size {step_size}, {steps} steps"] = Images(
            "dffg", 1280, {"batch_size": 128, "step_size": step_size, "steps": steps}
        )
for name, change in {
    "momentum 0.9": {"momentum": 0.9},
    "momentum 0": {"momentum": 0.0},
    "class weight 0.1": {"class_weight": 0.1},
    "class weight 10": {"class_weight": 10.0},
    "restart": {"restart": True},
    "adam": {"update": "adam", "step_size": 0.1},
    "one harvest": {"snapshots": 1},
}.items():
    IMAGES[f"dffg, {name}"] = Images("dffg", 1280, {"batch_size": 128, "steps": 200, **change})

RECIPES = {
    "published, 1/100": Recipe("published", "frozen", fraction=0.01),
    "learned, 400 updates": Recipe(
        "learned", "fold", more={0: {"steps": 400, "batch_size": 128, "mixing": "mixup"}}
    ),
    "learned, 100 updates": Recipe("learned", "fold", more={0: {"steps": 100, "batch_size": 128}}),
}
OURS = "learned, 400 updates"

TABLES = {
    "accuracy": [
        *(
            Cell(network, images, bits, OURS)
            for network in (AKA, C100, C10)
            for bits in ("w3a3", "w4a4", "w5a5")
            for images in ("zeroq+il", "real 1280", "dffg 200")
        ),
        *(
            Cell(network, images, bits, "published, 1/100")
            for network in (AKA, C100, C10)
            for bits in ("w4a4", "w3a3", "w5a5")
            for images in ("dffg", "zeroq+il", "real 5120")
        ),
    ],
    "dffg_sweep": [
        Cell(AKA, images, "w3a3", "learned, 100 updates")
        for images in IMAGES
        if images.startswith("dffg,")
    ],
}
TITLES = {
    "accuracy": "Students of synthetic images, points lost against float",
    "dffg_sweep": "DFFG's unpublished settings, swept",
}
ABOUT = {
    "accuracy": [
        "`python benchmarks/inversion_accuracy.py`: top-1 [%] of 10,000 test images, last epoch",
        "first; `best` is the best of five measured epochs. Recipe `learned, 400 updates`: refiner",
        "`distill`, preset `learned`, batches of 128, Mixup. `published, 1/100`: a hundredth of",
        "IntraQ's 30,200 updates of 256, milestones and range updates scaled alike.",
    ],
    "dffg_sweep": [
        "`python benchmarks/inversion_accuracy.py --table dffg_sweep`: 1,280 images in batches of",
        "128, 10 harvests each; then 100 updates of the student at w3a3.",
    ],
}

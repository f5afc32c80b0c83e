"""Sources, recipes and rows of the tables that `qimera_accuracy.py` measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qimera_published import USUAL, cell_name

from emptyset.quantizers.bits import Bits
from emptyset.refiners.course import FEWEST_RANGE_BATCHES

AKA = "cifar10_resnet20_akamaster"
C100 = "cifar100_resnet20_distiller"
# No ReLU after its residual additions: without `strict` some inputs would stay in float.
STRICT = (C100,)

# The paper: 80,000 lessons of 64, the generator alone in the first 800. A hundredth of these would
# leave the student images of an untrained generator, so the warm-up is a fifth. Learning rates fall
# where they do in the paper's 396 epochs behind the warm-up.
BATCH, WARM_UP = 64, 0.2
PUBLISHED, LONGER = "published, 1/200", "published, 1/80"
LESSONS = {PUBLISHED: 400, LONGER: 1000}
OURS, TENTH = "learned", "genie, then a tenth of learned"
# The same beside the generator that `learned` trained at w4a4, which goes on learning.
AGAIN = "genie, then a tenth of learned, generator trained before"
# As long as `distill` takes by itself: as many passes through the teacher as the best of inversion.
LONG = "learned, 4,000 lessons, CutMix"
# A new student beside the generator of that.
LONG_AGAIN = "learned, 3,000 lessons, CutMix, generator trained before"
# The usual updates beside the generator of `LONG`, mixed as usual.
LEARNT = "learned, generator trained before"
TWICE = "learned, 3,000 lessons, generator trained before"
# `LONG_AGAIN` for a student that was reconstructed first.
GENIE_LONG = "genie, then 3,000 lessons, CutMix, generator trained before"
_LONG_AGAIN = (LONG_AGAIN, GENIE_LONG)
# What differs from `learned` in length and mixing.
_SPECIAL: dict[str, dict[str, Any]] = {
    AGAIN: {"warm_up": 0.0},
    LEARNT: {"warm_up": 0.0},
    TWICE: {"steps": 3000, "warm_up": 0.0},
    LONG: {"steps": 4000, "mixing": "cutmix"},
    **{recipe: {"steps": 3000, "mixing": "cutmix", "warm_up": 0.0} for recipe in _LONG_AGAIN},
}
INITIALISED = (TENTH, AGAIN, GENIE_LONG)
# Behind one of these: the student sees the generator's images as they are.
UNMOVED = ", images not moved"
SHORT = "qimera, short schedule"
CALIBRATED = "calibrated"
OUR_UPDATES = {3: 1500, 4: 1000, 5: 500}


def milestones(share: float) -> tuple[float, ...]:
    """The paper's, behind a warm-up of another share of the schedule than its 4 of 400 epochs."""
    return tuple(round(share + (1 - share) * (e - 4) / 396, 4) for e in (100, 200, 300))


FALLS = milestones(WARM_UP)


@dataclass(frozen=True)
class Source:
    """A generator beside the student, and what its paper does to the student.

    Attributes:
        method: Registered name; empty: stored images instead, those of that name in the inversion
            tables, of "real 5120" training images.
        settings: Where they differ from the method's defaults.
        distill: The student's side: preset and what differs from it.
        by_bits: Further settings of the method, by network and bits of weights.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    distill: Mapping[str, Any] = field(default_factory=lambda: {"preset": "gdfq"})
    by_bits: Mapping[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One row."""

    network: str
    source: str
    bits: str
    recipe: str
    seed: int = 0

    def describe(self) -> str:
        """On one line."""
        return f"{self.network} | {self.source} | {self.bits} | {self.recipe} | seed {self.seed}"

    @property
    def looked_at(self) -> bool:
        """Whether accuracy on the way is measured too."""
        return self.recipe not in LESSONS or self.source in {"real 5120", *BETWEEN_CLASSES}

    def source_settings(self) -> dict[str, Any]:
        """Of the method."""
        about, weights = SOURCES[self.source], Bits.parse(self.bits).weights
        own = self.recipe not in LESSONS or about.distill["preset"] == "zaq"
        falls = {} if own else {"milestones": FALLS}
        return {**falls, **about.settings, **about.by_bits.get((self.network, weights), {})}

    @property
    def recipe_as_usual(self) -> str:
        """Without what is said behind it."""
        return self.recipe.removesuffix(UNMOVED)

    @property
    def trained_before(self) -> "Cell | None":
        """The row whose generator goes on learning in this one."""
        if self.recipe_as_usual == AGAIN:
            return replace(self, bits="w4a4", recipe=self.recipe.replace(AGAIN, OURS))
        return replace(self, recipe=LONG) if self.recipe in (LEARNT, TWICE, *_LONG_AGAIN) else None

    def distill_settings(self) -> dict[str, Any]:
        """Of the refiner."""
        if self.recipe not in LESSONS:
            updates = OUR_UPDATES[Bits.parse(self.bits).weights]
            if self.recipe_as_usual in INITIALISED:
                updates //= 10
            settings = {"steps": updates, "batch_size": 128, "mixing": "mixup"}
            if self.recipe != self.recipe_as_usual:
                settings["augmentation"] = "none"
            if self.recipe_as_usual in _SPECIAL:
                return settings | _SPECIAL[self.recipe_as_usual]
            if SOURCES[self.source].method:
                # With the default warm-up of a quarter the student has its updates.
                settings["steps"] = round(updates * 4 / 3)
            return settings
        if SOURCES[self.source].distill["preset"] == "zaq" and not SOURCES[self.source].method:
            # Five lessons of six are the student's.
            updates = round(LESSONS[self.recipe] * 5 / 6)
            schedule = {"steps": updates}
        elif not SOURCES[self.source].method:
            # As many updates as beside a source, at the same rates, behind the ranges' batches.
            updates = round(LESSONS[self.recipe] * (1 - WARM_UP))
            ranges = FEWEST_RANGE_BATCHES / (updates + FEWEST_RANGE_BATCHES)
            schedule = {
                "steps": updates + FEWEST_RANGE_BATCHES, "warm_up": ranges,
                "milestones": milestones(ranges),
            }  # fmt: skip
        else:
            schedule = {"steps": LESSONS[self.recipe], "warm_up": WARM_UP, "milestones": FALLS}
        return {**schedule, "batch_size": BATCH, **SOURCES[self.source].distill}


# K of the released scripts: 2 of 10 classes; of 100 classes 10 at 4 bits, 50 at 5.
_SCRIPTED = {(C100, 5): {"superposed_classes": 50}}
_ZAQ = {"preset": "zaq", "warm_up": 0.0, "milestones": None}
SOURCES = {
    "real 5120": Source(""),
    "real 5120, zaq": Source("", distill=_ZAQ),
    # The best of the inversion tables, and as many images as ZeroQ calibrates with.
    "harvested spectrum": Source(""),
    "zeroq 64": Source(""),
    "gdfq": Source("gdfq"),
    "qimera": Source("qimera", by_bits=_SCRIPTED),
    "autorecon": Source("autorecon"),
    "qimera on autorecon": Source("qimera", {"base": "autorecon"}, by_bits=_SCRIPTED),
    "zaq": Source("zaq", distill=_ZAQ),
    # BatchNorm of the student in training mode.
    "zaq, as released": Source("zaq", distill={**_ZAQ, "legacy": True}),
    "qimera on zaq": Source(
        "qimera", {"base": "zaq"}, {**_ZAQ, "cross_entropy": 0.1}, by_bits=_SCRIPTED
    ),
    # What a short schedule wants, see `qimera_statistics.py`.
    SHORT: Source(
        "qimera",
        {"statistics_weight": 10.0, "similarity_weight": 1.0, "class_similarity_weight": 5.0},
    ),
    # On the way to it.
    "qimera, statistics 10, embeddings unscaled": Source(
        "qimera", {"statistics_weight": 10.0, "embedding_spread": None}
    ),
    "qimera, statistics 10, similarity 2": Source(
        "qimera", {"statistics_weight": 10.0, "similarity_weight": 2.0}
    ),
    "gdfq, Mixup": Source("gdfq", distill={"preset": "gdfq", "mixing": "mixup"}),
    "gdfq, CutMix": Source("gdfq", distill={"preset": "gdfq", "mixing": "cutmix"}),
    "gdfq, AIT": Source("gdfq", distill={"preset": "ait"}),
    "qimera, AIT": Source(
        "qimera", distill={"preset": "ait"}, by_bits={(C100, 4): {"superposed_classes": 25}}
    ),
    "qimera, as released": Source(
        "qimera",
        {"mapping": False, "noise": "per_slot", "embeddings": "random", "superposed_norm": "mean"},
        {"preset": "gdfq", "legacy": True},
        _SCRIPTED,
    ),
    "adasg": Source("adasg", distill={"preset": "adasg"}),
    "adadfq": Source("adadfq", distill={"preset": "adadfq"}),
    "texq": Source("texq", distill={"preset": "texq"}),
}
# The rows of the teacher's last layer as they stand there, hidden in the noise.
_SCALED = ("qimera", "qimera on autorecon", "qimera on zaq")
UNSCALED = tuple(f"{name}, embeddings unscaled" for name in _SCALED)
SOURCES |= {
    name: replace(about, settings={**about.settings, "embedding_spread": None})
    for name, about in zip(UNSCALED, (SOURCES[name] for name in _SCALED), strict=True)
}
# Table 4: superposed embeddings (SE), disentanglement mapping (DM), extracted initialisation (EEI).
_PARTS: dict[str, dict[str, Any]] = {
    "SE": {"mapping": False, "embeddings": "random"},
    "SE+DM": {"embeddings": "random"},
    "SE+EEI": {"mapping": False},
    "SE+DM+EEI": {},
}
SOURCES |= {f"qimera, {name} only": Source("qimera", _PARTS[name]) for name in ("SE", "SE+DM")}
GRID = ["gdfq"]
for _share in (0.4, 0.7):
    for _together in (10, 2, 25, 100):
        for _name, _part in _PARTS.items():
            GRID.append(cell_name(_name, _together, _share))
            if GRID[-1] not in SOURCES:
                SOURCES[GRID[-1]] = Source(
                    "qimera", {"superposed_classes": _together, "superposed_share": _share, **_part}
                )
# Those of table 5, on CIFAR-100 cells of the grid, and what they stand on.
BETWEEN_CLASSES = {
    "gdfq", "qimera, SE only", "qimera, SE+DM only", *(cell_name(name, *USUAL) for name in _PARTS),
}  # fmt: skip
# The settings of the released script are the defaults.
assert USUAL == (10, 0.4)
# Table 1; which images stand beside the generated ones, with `generation.with_real_images`.
BESIDE: dict[str, dict[str, Any]] = {
    "gdfq, 101 unconfusing": {"choose": "unconfusing", "below": 0.25},
    "gdfq, 101 confusing": {"choose": "confusing", "below": 0.25},
    "gdfq, 15 most confusing a class": {"choose": "confusing", "per_class": 15},
    "gdfq, as many unconfusing": {"choose": "unconfusing", "per_class": 15},
}
SOURCES |= {name: Source("gdfq") for name in BESIDE}

_TABLE_3 = ("autorecon", "qimera on autorecon", "zaq", "qimera on zaq")
_PARTIAL = ("qimera, SE only", "qimera, SE+DM only", "zaq, as released")
_MIXED = ("gdfq, Mixup", "gdfq, CutMix")
_PLUG_INS = ("gdfq, Mixup", "gdfq, CutMix", "gdfq, AIT", "qimera, AIT", "adasg", "adadfq", "texq")
# In order of importance: a table that is not finished has the first ones.
TABLES = {
    "accuracy": [
        *(Cell(n, s, "w4a4", PUBLISHED) for n in (AKA, C100) for s in ("gdfq", "qimera")),
        *(Cell(n, SHORT, bits, OURS) for n in (AKA, C100) for bits in ("w4a4", "w3a3")),
        *(Cell(n, "real 5120", "w4a4", PUBLISHED) for n in (AKA, C100)),
        *(Cell(n, s, "w4a4", PUBLISHED) for n in (AKA, C100) for s in _TABLE_3),
        *(
            Cell(n, s, "w5a5", PUBLISHED)
            for n in (AKA, C100)
            for s in ("gdfq", "qimera", "real 5120")
        ),
        *(Cell(AKA, s, "w4a4", PUBLISHED) for s in (*_PARTIAL, *_PLUG_INS)),
        *(
            Cell(n, s, "w4a4", PUBLISHED, seed)
            for seed in (1, 2)
            for n in (AKA, C100)
            for s in ("gdfq", "qimera")
        ),
        # What a longer schedule changes.
        *(Cell(AKA, s, "w4a4", LONGER) for s in ("gdfq", "qimera", "real 5120")),
        *(Cell(C100, s, "w4a4", LONGER) for s in ("qimera", "real 5120")),
        # Its compounding average of ranges needs 160 batches.
        Cell(AKA, "qimera, as released", "w4a4", LONGER),
        # The best combination.
        *(Cell(C100, "qimera on autorecon", "w4a4", PUBLISHED, seed) for seed in (1, 2)),
        *(Cell(n, s, "w5a5", PUBLISHED) for n in (AKA, C100) for s in _TABLE_3),
        *(Cell(C100, s, "w4a4", PUBLISHED) for s in _MIXED),
        *(Cell(n, "zeroq 64", bits, CALIBRATED) for n in (AKA, C100) for bits in ("w4a4", "w5a5")),
        *(Cell(n, "real 5120, zaq", "w4a4", PUBLISHED) for n in (AKA, C100)),
        # Measured for the inversion tables, with as many updates.
        *(
            Cell(n, s, bits, OURS)
            for n in (AKA, C100)
            for bits in ("w4a4", "w3a3")
            for s in ("harvested spectrum", "real 5120")
        ),
        *(
            Cell(n, s, "w5a5", PUBLISHED, seed)
            for seed in (1, 2)
            for n in (AKA, C100)
            for s in ("gdfq", "qimera")
        ),
        *(Cell(AKA, SHORT, "w3a3", recipe) for recipe in (LONG, LONG_AGAIN)),
        *(Cell(C100, SHORT, b, recipe) for b in ("w3a3", "w4a4") for recipe in (LONG, LEARNT)),
        Cell(C100, SHORT, "w3a3", TWICE),
        # On the way.
        *(
            Cell(n, UNSCALED[0], "w4a4", recipe)
            for n in (AKA, C100)
            for recipe in (PUBLISHED, OURS + UNMOVED)
        ),
        *(Cell(n, UNSCALED[1], "w4a4", PUBLISHED) for n in (AKA, C100)),
        Cell(AKA, UNSCALED[2], "w4a4", PUBLISHED),
        Cell(AKA, "qimera, statistics 10, similarity 2", "w4a4", OURS + UNMOVED),
        *(
            Cell(AKA, source, bits, OURS + UNMOVED)
            for source in ("qimera, statistics 10, embeddings unscaled", SHORT)
            for bits in ("w4a4", "w3a3")
        ),
    ],
    # The whole schedules from scratch stand in the inversion tables; beside a source in `accuracy`.
    "initialised": [
        Cell(n, s, bits, recipe)
        for n in (AKA, C100)
        for bits in ("w4a4", "w3a3")
        for s in (SHORT, "harvested spectrum", "real 5120")
        for recipe in (OURS, TENTH, *([AGAIN] if SOURCES[s].method else []))
    ]
    + [
        Cell(AKA, UNSCALED[0], bits, recipe + UNMOVED)
        for bits in ("w4a4", "w3a3")
        for recipe in (TENTH, AGAIN)
    ]
    + [Cell(AKA, SHORT, "w3a3", recipe) for recipe in (LONG_AGAIN, GENIE_LONG)],
    "grid": [Cell(C100, source, "w4a4", PUBLISHED) for source in GRID],
    "confusing": [
        Cell(C100, source, "w4a4", PUBLISHED) for source in ("real 5120", "gdfq", *BESIDE, "qimera")
    ],
}
TITLES = {
    "accuracy": "Students beside generators, points lost against float",
    "initialised": "Training from scratch, and a tenth of it behind reconstruction",
    "grid": "Qimera's parts on CIFAR-100 (its table 4)",
    "confusing": "Is it images near boundaries that are missing? (Qimera's table 1)",
}
_PROTOCOL = [
    "`published, 1/200`: Qimera's published loss and learning rates, 400 lessons of 64 images",
    "instead of 80,000, 80 of them for the generator alone (zaq: none), the last 20 for ranges",
    "too, milestones in the same places behind these; real images: 320 updates at the same rates,",
    "before them 20 batches for ranges. `published, 1/80`: the same with 1,000 lessons. The other",
    "methods' losses and rates are their own, lessons and batches are these (published: ZAQ",
    "108,000 of 256, AdaSG and AdaDFQ 80,000 of 16, TexQ batches of 128).",
]
_COLUMNS = [
    "Top-1 [%] of 10,000 test images, last epoch first; `best` is the best of three looks, one",
    "after every third, where there were any. `ratio` and `intrusion` (GDFQ, and Qimera as in the",
    "paper's table 5): distance ratio and intrusion of the generator between 45 pairs of classes;",
    "`mixup_`: of the images at the ends, mixed. Seconds are those of one thread beside other",
    "work, so they compare with nothing.",
]
ABOUT = {
    "accuracy": [
        "`python benchmarks/qimera_accuracy.py`: the paper's tables 2, 3 and 5 (for CIFAR-100 the",
        "rows with parts of Qimera stand in `grid`). `paper_`: what the paper reports after its",
        "80,000 lessons, of other networks with 93.89 and 70.33; its table 5 has, for Mixup, 2.44",
        "and 0.800 on CIFAR-10, 3.14 and 0.400 on CIFAR-100.", *_PROTOCOL,
        "`learned`: refiner `distill`, preset `learned`, Mixup, batches of 128, images that never",
        "repeat, shifted and mirrored unless it says `not moved`; 1,500 updates at w3a3, 1,000 at",
        "w4a4, before them a third as many lessons for the generator alone. `calibrated`: ZeroQ,",
        "extremes of 64 images. `learned, 4,000 lessons`: a quarter is for the generator alone; in",
        "`3,000 lessons` none is, for that generator goes on learning there.",
        *_COLUMNS,
    ],
    "initialised": [
        "`python benchmarks/qimera_accuracy.py --table initialised`: `learned` as in table",
        "`accuracy`, from a calibrated student; the other: a tenth of these updates behind Genie-M",
        "of 1,000 steps a block on 1,024 images, of `harvested spectrum` where the student then",
        "learns beside a generator. A third of that is too little for a generator, so `generator",
        "trained before` goes on with the one that `learned` trained at w4a4. `3,000 lessons`: as",
        "many updates, twice those of `learned`, beside the generator of 4,000 in `accuracy`.",
        "`reconstructed`: top-1 before that training.", *_COLUMNS,
    ],
    "grid": [
        "`python benchmarks/qimera_accuracy.py --table grid`: K classes in an image, share p of",
        "superposed batches. The published rows are maxima over the cells, so compare a cell with",
        "the same cell. ImageNet's grid: not run.", *_PROTOCOL, *_COLUMNS,
    ],
    "confusing": [
        "`python benchmarks/qimera_accuracy.py --table confusing`: real images in a tenth of every",
        "batch of the student, chosen among 16,000 training images: those below confidence 0.25,",
        "and the 15 least confident of each class. Analysis, not data-free.", *_PROTOCOL, *_COLUMNS,
    ],
}  # fmt: skip

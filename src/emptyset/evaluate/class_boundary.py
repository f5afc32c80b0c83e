"""Do superposed images lie between their classes? Distance ratio and intrusion score of Qimera."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError, RecipeError
from emptyset.evaluate.mixture_images import AUTO, DRAWN, NOISES, MixtureImages
from emptyset.evaluate.teacher_features import TeacherFeatures
from emptyset.generators.generator_source import GeneratorSource
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher

WHAT, KEY = "class boundaries", "class_boundary"


@dataclass(frozen=True, kw_only=True)
class BoundarySettings:
    """How class boundaries are looked at.

    Attributes:
        pairs: At most so many pairs of classes, drawn with the seed; 45 are all of ten classes.
            None: all pairs.
        steps: Of λ from 0 to 1; the distance ratio grows with them.
        noise: ``zero``; ``drawn``: one noise for all images of a sweep; ``auto``: zero where the
            generator adds noise to its embeddings. Not published; zero is our guess.
        draws: Sweeps of each pair, each with another noise, where noise is drawn.
    """

    pairs: int | None = 45
    steps: int = 100
    noise: str = AUTO
    draws: int = 1

    def __post_init__(self) -> None:
        for name in ("pairs", "steps", "draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"'{name}' must be at least 1. Got {value}.")
        if self.noise not in NOISES:
            raise RecipeError(f"'noise' must be one of {', '.join(NOISES)}. Got '{self.noise}'.")


@dataclass(frozen=True)
class BoundaryScore:
    """One way from class to class, mean over pairs.

    Attributes:
        ratio: Length of the way through feature space, over the distance of its ends; at least 1,
            which is a straight line.
        ratio_spread: Standard deviation over the pairs; None for a single one.
        intrusion: Probability that the teacher gives to all other classes, mean over the way, 0..1.
        intrusion_spread: Standard deviation over the pairs; None for a single one.
    """

    ratio: float
    ratio_spread: float | None
    intrusion: float
    intrusion_spread: float | None


@dataclass(frozen=True)
class ClassBoundary:
    """What was found between classes.

    Attributes:
        superposed: Images that the generator makes of both classes at once.
        mixup: The two images at the ends, mixed pixel by pixel with the same shares.
        pairs: Pairs that were looked at.
        of_pairs: Pairs that there are.
        without_distance: Pairs left out, since both ends have the same features.
        steps: Of λ.
        noise: ``zero`` or ``drawn``.
        draws: Sweeps of each pair.
        features: ``penultimate``, or ``logits`` for a network without a last linear layer.
        seed: Of pairs and noise.
    """

    superposed: BoundaryScore
    mixup: BoundaryScore
    pairs: int
    of_pairs: int
    without_distance: int
    steps: int
    noise: str
    draws: int
    features: str
    seed: int

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


def class_boundary(
    source: GeneratorSource,
    teacher: Teacher,
    settings: BoundarySettings | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    monitor: Monitor = SILENT,
) -> ClassBoundary:
    """Sweep a generator from class to class, and see what the teacher makes of the way.

    Args:
        source: A generator with labels, live or from ``emptyset.generation.generator_from``.
        teacher: The network that it was made for.
        settings: How; the defaults where None.
        seed: Of the chosen pairs, and of noise.
        batch_size: Images at a time.
        monitor: Hears of progress, keeps what was found of each pair.

    Raises:
        UnsupportedModelError: If the generator makes images without labels, or the teacher is no
            classifier.
        ImagesError: If an image or feature is not finite, or no pair has a distance.

    Source:
        Qimera, Choi et al. 2021, arXiv:2111.02625, section 5.5 and table 5. "Sum of logits outside
        the pair" is read as the sum of softmax probabilities, since the published values lie
        between 0 and 1; averages over λ and pairs, and the images that Mixup mixes, are guesses.
    """
    settings = settings or BoundarySettings()
    made = MixtureImages(source, teacher, noise=settings.noise, batch_size=batch_size)
    made.require_labels()
    reader = TeacherFeatures(teacher, batch_size=batch_size)
    classes = source.generator.classes
    pairs = chosen_pairs(classes, settings.pairs, seed=seed)
    draws = settings.draws if made.noise == DRAWN else 1
    # Ratio and intrusion of the superposed images, then of Mixup.
    found_P4, done = _kept(monitor, len(pairs))
    for number in range(done, len(pairs)):
        pair = (int(pairs[number, 0]), int(pairs[number, 1]))
        scores = [
            _scores(made, reader, pair, settings.steps, seed=_noise_seed(seed, number, draw))
            for draw in range(draws)
        ]
        found_P4[number] = torch.stack(scores).mean(dim=0)
        state = {"found": found_P4, "done": torch.tensor(number + 1)}
        monitor.keep(KEY, lambda state=state: state)  # type: ignore[misc]
        monitor.advance(WHAT, number + 1, len(pairs))
    return ClassBoundary(
        superposed=_score(found_P4[:, :2], source.method.name),
        mixup=_score(found_P4[:, 2:], source.method.name),
        pairs=len(pairs),
        of_pairs=classes * (classes - 1) // 2,
        without_distance=int(found_P4[:, 0].isnan().sum()),
        steps=settings.steps,
        noise=made.noise,
        draws=draws,
        features=reader.kind,
        seed=seed,
    )


def chosen_pairs(classes: int, most: int | None, *, seed: int) -> Tensor:
    """Pairs of different classes in ascending order, ``(P, 2)``: all, or ``most`` drawn ones."""
    pairs = torch.combinations(torch.arange(classes), 2)
    if most is None or most >= len(pairs):
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return pairs[order[:most].sort().values]


def mixup_sweep(sweep_TCHW: Tensor) -> Tensor:
    """The ends of a sweep mixed pixel by pixel, ``(T, C, H, W)``.

        x_t = (1 − λ_t) · x_0 + λ_t · x_T

    Args:
        sweep_TCHW: Images in equal steps of λ from 0 to 1; only first and last are used.
    """
    share = torch.linspace(0, 1, len(sweep_TCHW), dtype=torch.double).float().view(-1, 1, 1, 1)
    return (1 - share) * sweep_TCHW[0] + share * sweep_TCHW[-1]


def distance_ratio(features_TF: Tensor) -> Tensor:
    """How much longer a way through feature space is than the straight line between its ends.

        ratio = Σ_t ‖f_{t+1} − f_t‖₂ / ‖f_T − f_0‖₂

    Args:
        features_TF: Features along the way, ``(T, F)``, at least 2.

    Returns:
        Scalar, at least 1 but for rounding; NaN where both ends are the same.
    """
    way = features_TF.diff(dim=0).norm(dim=1).sum()
    straight = (features_TF[-1] - features_TF[0]).norm()
    return torch.where(straight > 0, way / straight, math.nan)


def intrusion(logits_TK: Tensor, pair: tuple[int, int]) -> Tensor:
    """Probability of all classes outside a pair, mean over the images.

        intrusion = mean_t Σ_{c ∉ pair} softmax(z_t)_c

    Args:
        logits_TK: ``(T, K)``.
        pair: The two classes.

    Returns:
        Scalar, 0..1; 0 exactly where there are no other classes.
    """
    others = torch.ones(logits_TK.shape[1], dtype=torch.bool, device=logits_TK.device)
    others[list(pair)] = False
    return logits_TK.softmax(dim=1)[:, others].sum(dim=1).mean()


def _scores(
    made: MixtureImages, reader: TeacherFeatures, pair: tuple[int, int], steps: int, *, seed: int
) -> Tensor:
    """``(4,)`` double: ratio and intrusion of superposed images, and of Mixup."""
    superposed = made.sweep(pair, steps, seed=seed)
    found = []
    for images in (superposed, mixup_sweep(superposed)):
        seen = reader.of(images)
        if not bool(torch.isfinite(seen.features).all() and torch.isfinite(seen.logits).all()):
            raise ImagesError(
                f"Between the classes {pair[0]} and {pair[1]} the generator's images, or what the "
                "teacher makes of them, are not finite: its training diverged. Train it again with "
                "a lower learning_rate."
            )
        found += [distance_ratio(seen.features.double()), intrusion(seen.logits.double(), pair)]
    return torch.stack(found)


def _noise_seed(seed: int, pair: int, draw: int) -> int:
    return (seed * 1_000_003 + pair) * 1_009 + draw


def _kept(monitor: Monitor, pairs: int) -> tuple[Tensor, int]:
    """What a killed run found, and of how many pairs."""
    state = monitor.restore(KEY)
    if state is None:
        return torch.full((pairs, 4), math.nan, dtype=torch.double), 0
    return state["found"].clone(), int(state["done"])


def _score(found_P2: Tensor, name: str) -> BoundaryScore:
    ratios = found_P2[:, 0][~found_P2[:, 0].isnan()]
    if not len(ratios):
        raise ImagesError(
            f"{name}: both classes of every pair look the same to the teacher, so nothing lies "
            "between them. The generator was hardly trained, or collapsed."
        )
    ratio, ratio_spread = _mean_and_spread(ratios)
    intrusions, intrusion_spread = _mean_and_spread(found_P2[:, 1])
    return BoundaryScore(ratio, ratio_spread, intrusions, intrusion_spread)


def _mean_and_spread(values: Tensor) -> tuple[float, float | None]:
    return values.mean().item(), values.std().item() if len(values) > 1 else None

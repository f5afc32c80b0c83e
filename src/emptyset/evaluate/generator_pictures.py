"""Gathers what the pictures of a generator show: samples in feature space, a path, images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import ImagesError, RecipeError
from emptyset.evaluate.class_boundary import mixup_sweep
from emptyset.evaluate.diversity import classes_of
from emptyset.evaluate.mixture_images import MixtureImages
from emptyset.evaluate.pictured_samples import (
    UNKNOWN,
    ClassPath,
    FeatureMap,
    GeneratorPictures,
    Grid,
    Points,
    no_class,
)
from emptyset.evaluate.principal_plane import PrincipalPlane, principal_plane
from emptyset.evaluate.small_pixels import small_pixels
from emptyset.evaluate.teacher_features import TeacherFeatures
from emptyset.generators.class_mixture import ClassMixture
from emptyset.generators.generator_source import GeneratorSource
from emptyset.images.folder import spread
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher

WHAT = "pictures of the generator"
LARGEST_TILE = 72
# Big dots of the published path: λ = 0, 0.1 .. 1.
STOPS = 11


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """How much is shown.

    Attributes:
        classes: Most classes, spread over all.
        per_class: Generated images of each class in the map (1,000 in the paper).
        superposed: Images between two of the classes in the map (9,000 in the paper).
        steps: Of λ, on the path.
        grid: Images in each row of the grid.
        pair: Classes of the path; the first two that are shown where None.
    """

    classes: int = 10
    per_class: int = 100
    superposed: int = 900
    steps: int = 100
    grid: int = 8
    pair: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("per_class", 2), ("superposed", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"'{name}' must be at least {least}.")
        if not 1 <= self.grid <= self.per_class:
            raise RecipeError(
                f"'grid' must lie in 1..{self.per_class}, the images of a class. Got {self.grid}."
            )


@dataclass(frozen=True)
class _Seen:
    """Features of samples, with their classes."""

    features: Tensor
    classes: Tensor

    def of(self, labels: tuple[int, ...]) -> "_Seen":
        kept = torch.isin(self.classes, torch.tensor(labels))
        return _Seen(self.features[kept], self.classes[kept])

    def in_plane(self, plane: PrincipalPlane) -> Points:
        if not bool(torch.isfinite(self.features).all()):
            raise ImagesError("The teacher's features of some images are not finite.")
        return Points(plane.project(self.features).float(), self.classes)


def generator_pictures(
    source: GeneratorSource,
    teacher: Teacher,
    settings: PictureSettings | None = None,
    *,
    real: Images | None = None,
    seed: int = 0,
    batch_size: int = 256,
    monitor: Monitor = SILENT,
) -> GeneratorPictures:
    """Gather figures 3 to 6 of Qimera for any generator; ``write_figures`` draws them.

    Args:
        source: A generator, live or from ``emptyset.generation.generator_from``.
        teacher: The network that it was made for.
        settings: How much; the defaults where None.
        real: Real images for the map, [teacher's normalised units]; all of them are read.
        seed: Of labels and noise.
        batch_size: Images at a time.
        monitor: Hears of progress.

    Raises:
        RecipeError: If the pair names classes that there are not.
        UnsupportedModelError: If the teacher is no classifier.
    """
    settings = settings or PictureSettings()
    work = _Work(source, teacher, settings, seed, batch_size)
    monitor.advance(WHAT, 0, 4)
    generated, grid = work.generated()
    monitor.advance(WHAT, 1, 4)
    seen = None if real is None else work.real(real)
    monitor.advance(WHAT, 2, 4)
    missing = work.missing(real, seen)
    feature_map = class_path = None
    try:
        feature_map = work.map(generated, seen)
    except ImagesError as error:
        missing.append(f"The map of features: {error}")
    monitor.advance(WHAT, 3, 4)
    if source.method.labelled:
        try:
            class_path = work.path(generated, seen)
        except ImagesError as error:
            missing.append(f"The path between two classes: {error}")
    monitor.advance(WHAT, 4, 4)
    shown = {*work.shown, *(class_path.pair if class_path else ())}
    names = teacher.class_names or ()
    return GeneratorPictures(
        method=source.method.name,
        features=work.reader.kind,
        grid=grid,
        feature_map=feature_map,
        class_path=class_path,
        class_names={label: names[label] for label in sorted(shown) if label < len(names)},
        missing=tuple(missing),
    )


def require_pair(pair: tuple[int, int] | None, classes: int, teacher: str) -> None:
    """Check the classes of a path.

    Raises:
        RecipeError: If it names classes that there are not, or one class twice.
    """
    if pair is not None and (pair[0] == pair[1] or not all(0 <= c < classes for c in pair)):
        raise RecipeError(
            f"pair: expected two different classes of {teacher}, 0 to {classes - 1}. Got {pair}."
        )


class _Work:
    """One generator being pictured."""

    def __init__(
        self,
        source: GeneratorSource,
        teacher: Teacher,
        settings: PictureSettings,
        seed: int,
        batch_size: int,
    ) -> None:
        classes = source.generator.classes
        require_pair(settings.pair, classes, teacher.name)
        self._source, self._spec, self._settings, self._seed = source, teacher.input, settings, seed
        self._batch_size = batch_size
        self._made = MixtureImages(source, teacher, batch_size=batch_size)
        self.reader = TeacherFeatures(teacher, batch_size=batch_size)
        self.shown = tuple(spread(classes, settings.classes).tolist())
        self._pair = settings.pair or self.shown[:2]

    def generated(self) -> tuple[_Seen, Grid]:
        """Images of one class each: what the teacher sees in all, and what some look like."""
        settings, rows = self._settings, len(self.shown)
        count = rows * settings.per_class
        random = torch.Generator().manual_seed(self._seed)
        labels = torch.tensor(self.shown).repeat_interleave(settings.per_class)
        mixture = ClassMixture(labels[:, None], torch.ones(count, 1))
        if not self._source.method.labelled:
            mixture = self._source.method.sampler.draw(random, count, superposed=False)
        wanted = torch.arange(count) % settings.per_class < settings.grid
        batches = self._made.drawn(mixture, seed=self._seed)
        seen, tiles = self._looked_at(batches, labels, wanted)
        classes = torch.tensor(self.shown)
        if not self._source.method.labelled:
            classes = no_class(rows)
        return seen, Grid(tiles.view(rows, settings.grid, *tiles.shape[1:]), classes)

    def _looked_at(
        self, batches: Iterable[Tensor], labels: Tensor, wanted: Tensor
    ) -> tuple[_Seen, Tensor]:
        """What the teacher sees in images, and the wanted ones of them small."""
        features, predictions, tiles, start = [], [], [], 0
        for images in batches:
            seen = self.reader.of(images)
            features.append(seen.features)
            predictions.append(seen.logits.argmax(dim=1))
            kept = images[wanted[start : start + len(images)]]
            if len(kept):
                tiles.append(small_pixels(kept, self._spec, LARGEST_TILE))
            start += len(images)
        if not self._source.method.labelled:
            labels = torch.cat(predictions)
        return _Seen(torch.cat(features), labels), torch.cat(tiles)

    def real(self, images: Images) -> _Seen:
        """Real images of the shown classes; all of them where they have no labels."""
        features, classes = [], []
        for batch in images.batches(self._batch_size):
            labels = no_class(len(batch.images))
            kept = torch.ones(len(batch.images), dtype=torch.bool)
            if batch.targets is not None:
                labels = classes_of(batch.targets)
                kept = torch.isin(labels, torch.tensor((*self.shown, *self._pair)))
            if bool(kept.any()):
                features.append(self.reader.of(batch.images[kept]).features)
                classes.append(labels[kept])
        if not features:
            return _Seen(torch.empty(0, 2), no_class(0))
        return _Seen(torch.cat(features), torch.cat(classes))

    def missing(self, real: Images | None, seen: _Seen | None) -> list[str]:
        """What cannot be shown for lack of data."""
        told = []
        if not self._source.method.labelled:
            told.append(
                "Superposed images, the path between two classes and the table of class "
                f"boundaries: {self._source.method.name} makes images without labels. The map "
                "is coloured by what the teacher says."
            )
        if real is None or seen is None:
            told.append(
                "Real images: none were given, so the basis is fitted to generated ones. Give some "
                "to see what generated ones lack."
            )
        elif len(seen.classes) < 3:
            told.append(
                f"Real images: {len(seen.classes)} are of the classes shown, too few to fit a "
                "basis to, so it is fitted to generated ones."
            )
        elif bool((seen.classes < 0).any()):
            told.append("Classes of the real images: they have no labels, so they are grey.")
        if real is not None and seen is not None and self._source.method.labelled:
            named = bool((seen.classes >= 0).any())
            if named and not _spans(seen.of(self._pair).classes, self._pair):
                told.append(
                    f"Real images around the path: not enough are of classes {self._pair[0]} and "
                    f"{self._pair[1]}, so generated ones are there."
                )
        return told

    def map(self, generated: _Seen, real: _Seen | None) -> FeatureMap:
        """All kinds of samples in one basis, that of the real images where there are any."""
        if real is not None:
            real = real.of((*self.shown, UNKNOWN))
        fitted = generated if real is None or len(real.classes) < 3 else real
        plane = principal_plane(fitted.features)
        superposed = None
        if self._source.method.labelled:
            between = self._between()
            superposed = between.in_plane(plane)
        return FeatureMap(
            generated=generated.in_plane(plane),
            superposed=superposed,
            real=real.in_plane(plane) if real is not None and fitted is real else None,
            basis="real" if fitted is real else "generated",
            explained=plane.explained,
            predicted=not self._source.method.labelled,
        )

    def _between(self) -> _Seen:
        """Images between two of the shown classes: every pair alike, λ spread over 0..1."""
        count = self._settings.superposed
        pairs = torch.combinations(torch.tensor(self.shown), 2)
        turns = torch.arange(count)
        each = -(-count // len(pairs))
        # The middles of equal parts: neither end is between two classes.
        share = ((turns // len(pairs)).float() + 0.5) / each
        classes = pairs[turns % len(pairs)]
        mixture = ClassMixture(classes, torch.stack([1 - share, share], dim=1))
        batches = self._made.drawn(mixture, seed=self._seed + 1)
        features = [self.reader.of(images).features for images in batches]
        return _Seen(torch.cat(features), no_class(count))

    def path(self, generated: _Seen, real: _Seen | None) -> ClassPath:
        """The way between two classes, in the basis of these alone."""
        pair = self._pair
        around, basis = generated.of(pair), "generated"
        if real is not None and _spans(real.of(pair).classes, pair):
            around, basis = real.of(pair), "real"
        elif set(pair) - set(self.shown):
            around = self._samples_of(pair)
        plane = principal_plane(around.features)
        sweep = self._made.sweep(pair, self._settings.steps, seed=self._seed)
        ways = (sweep, mixup_sweep(sweep))
        stops = torch.linspace(0, self._settings.steps, STOPS).round().long()
        places = [plane.project(self.reader.of(way).features).float() for way in ways]
        tiles = [small_pixels(way[stops], self._spec, LARGEST_TILE) for way in ways]
        return ClassPath(
            pair=pair,
            superposed=places[0],
            mixup=places[1],
            around=around.in_plane(plane),
            basis=basis,
            explained=plane.explained,
            tiles=torch.stack(tiles),
        )

    def _samples_of(self, pair: tuple[int, int]) -> _Seen:
        labels = torch.tensor(pair).repeat_interleave(self._settings.per_class)
        mixture = ClassMixture(labels[:, None], torch.ones(len(labels), 1))
        batches = self._made.drawn(mixture, seed=self._seed + 2)
        return _Seen(torch.cat([self.reader.of(i).features for i in batches]), labels)


def _spans(classes: Tensor, pair: tuple[int, int]) -> bool:
    """Whether samples of both classes are there, and enough for a plane."""
    return len(classes) >= 3 and set(classes.tolist()) == set(pair)

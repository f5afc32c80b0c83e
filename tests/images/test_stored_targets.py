"""Targets that were stored with images are there again in every way in which these are read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from emptyset import measurement
from emptyset.comparison.judging import Judge
from emptyset.errors import ImagesError
from emptyset.evaluate.accuracy import accuracy
from emptyset.evaluate.diversity import diversity
from emptyset.images.folder import LazyImages, load_images
from emptyset.images.image_set import ImageSet
from emptyset.images.shard_writer import write_shards
from emptyset.job.held_out import first, split
from emptyset.job.image_stages import KnownImages
from emptyset.refiners.training_parts import source_of
from emptyset.report.contact_sheet import contact_sheet
from emptyset.teachers.teacher import InputSpec, Teacher

SPEC = InputSpec((3, 4, 6), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
COUNT, CLASSES = 11, 3
GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randn(COUNT, 3, 4, 6, generator=GENERATOR)
SOFT = torch.rand(COUNT, CLASSES, generator=GENERATOR).softmax(dim=1)
HARD = torch.randint(CLASSES, (COUNT,), generator=GENERATOR)


@pytest.fixture(params=["one file", "shards"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


def stored(folder: Path, targets: Tensor | None, layout: str) -> LazyImages:
    images = ImageSet(PIXELS, targets)
    if layout == "shards":
        write_shards(images, folder, per_shard=4)
    else:
        images.save(folder)
    return load_images(folder, SPEC)


@pytest.mark.parametrize(
    "targets", [SOFT, HARD, HARD.int(), None], ids=["soft", "hard", "int", "no"]
)
def test_targets_stay_with_their_images(
    tmp_path: Path, targets: Tensor | None, layout: str
) -> None:
    images = stored(tmp_path, targets, layout)

    def expected(indices: list[int]) -> Tensor | None:
        return None if targets is None else targets[indices]

    def same(found: Tensor | None, indices: list[int]) -> bool:
        wanted = expected(indices)
        if found is None or wanted is None:
            return found is wanted
        return torch.equal(found, wanted) and found.dtype == wanted.dtype

    everything = list(range(COUNT))
    assert same(images.targets, everything)
    batches = list(images.batches(4))
    assert [len(batch.images) for batch in batches] == [4, 4, 3]
    assert same(batches[1].targets, [4, 5, 6, 7])
    # 0, 11/3 and 22/3, rounded down.
    assert same(images.limited(3).targets, [0, 3, 7])
    assert same(images.limited(3).image_set().targets, [0, 3, 7])
    assert same(images.image_set(limit=3).targets, [0, 3, 7])
    assert same(first(images, 3).targets, [0, 3, 7])
    assert same(source_of(images, 0).images.targets, everything)  # type: ignore[union-attr]
    fitted, rest = split(images, seed=5)
    assert rest is not None
    assert same(rest.targets, rest.indices.tolist())
    assert same(fitted.image_set().targets, fitted.indices.tolist())


def test_only_class_indices_count_right_answers(tmp_path: Path, layout: str) -> None:
    hard = stored(tmp_path / "hard", HARD, layout)
    soft = stored(tmp_path / "soft", SOFT, layout)
    assert hard.labels is not None
    assert hard.labels.tolist() == HARD.tolist()
    assert soft.labels is None
    assert measurement.has_labels(hard)
    assert not measurement.has_labels(soft)
    with pytest.raises(ImagesError, match="one class index per image"):
        accuracy(lambda images: images.mean((2, 3)), soft)


class MeanColours(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_the_likeliest_class_is_compared_with_what_the_teacher_says(
    tmp_path: Path, layout: str
) -> None:
    teacher = Teacher("colours", MeanColours(), SPEC)
    found = diversity(stored(tmp_path, SOFT, layout), teacher)
    said = [max(range(3), key=lambda c: float(image[c].mean())) for image in PIXELS]
    likeliest = [max(range(3), key=lambda c: float(row[c])) for row in SOFT]
    agreed = sum(a == b for a, b in zip(said, likeliest, strict=True))
    assert 0 < agreed < COUNT
    assert found.class_agreement == pytest.approx(agreed / COUNT)
    assert found.labelled


def test_the_contact_sheet_shows_them_by_their_likeliest_class(tmp_path: Path, layout: str) -> None:
    images = stored(tmp_path, SOFT, layout)
    in_memory = contact_sheet(ImageSet(PIXELS, SOFT), SPEC, class_names=["a", "b", "c"])
    sheet = contact_sheet(images, SPEC, class_names=["a", "b", "c"])
    assert sheet.groups() == in_memory.groups()
    assert [group.name for group in sheet.groups()] == ["a", "b", "c"]


def test_a_comparison_judges_by_agreement_where_labels_are_soft(
    tmp_path: Path, layout: str
) -> None:
    teacher = Teacher("colours", MeanColours(), SPEC)
    images = stored(tmp_path, SOFT, layout)
    found = Judge(teacher, KnownImages(images, "x", "x"), seed=0).measure(
        MeanColours(),  # type: ignore[arg-type]
        measurement.SILENT,
    )
    assert (found["teacher"], found["quantized"]) == (None, None)
    assert found["agreement"]["share"] == 1.0
    assert found["count"] == COUNT


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_images_in_other_units_than_the_teachers_are_refused(
    name: str, shards: int | None, tmp_path: Path
) -> None:
    history = ({"stage": "synthesize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]},)
    made = ImageSet(torch.randn(3, 3, 4, 6), history=history)
    if shards is None:
        made.save(tmp_path / "s")
    else:
        write_shards(made, tmp_path / "s", per_shard=shards)
    assert len(load_images(tmp_path / "s", SPEC)) == 3
    other = replace(SPEC, **{name: (0.1, 0.2, 0.6)})
    before = {"mean": "0.5,0.4,0.3", "std": "0.2,0.25,0.5"}[name]
    with pytest.raises(ImagesError, match=f"units of {name} {before}, .* {name} 0.1,0.2,0.6"):
        load_images(tmp_path / "s", other)

"""What the pictures show: the numbers of the toy generator, and nothing that was not measured."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emptyset.errors import RecipeError, RunFolderError
from emptyset.evaluate.generator_pictures import PictureSettings, generator_pictures
from emptyset.evaluate.mixture_images import MixtureImages
from emptyset.evaluate.pictured_samples import GeneratorPictures, Points
from emptyset.evaluate.principal_plane import principal_plane
from emptyset.generators.class_mixture import ClassMixture
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import Teacher

Toy = Callable[..., Any]
SMALL = PictureSettings(classes=3, per_class=4, superposed=7, steps=20, grid=2)


def real_images(classes: list[int] | None, count: int = 9) -> ImageSet:
    drawn = torch.Generator().manual_seed(2)
    pixels = torch.randn(count, 1, 1, 2, generator=drawn)
    return ImageSet(pixels, None if classes is None else torch.tensor(classes))


def features(pictures: GeneratorPictures, points: Points) -> torch.Tensor:
    return points.places


def test_all_kinds_of_samples_stand_in_the_basis_of_the_real_ones(
    toy: Toy, teacher: Teacher
) -> None:
    real = real_images([0, 1, 2] * 3)
    found = generator_pictures(toy(), teacher, SMALL, real=real, seed=1, batch_size=5)
    shown = found.feature_map
    assert shown is not None
    # Features of the toy are its two pixels.
    plane = principal_plane(real.images.flatten(1))
    assert shown.basis == "real"
    assert shown.explained == plane.explained
    assert shown.real is not None
    torch.testing.assert_close(shown.real.places, plane.project(real.images.flatten(1)).float())
    assert shown.real.classes.tolist() == [0, 1, 2] * 3
    assert shown.generated.classes.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert shown.superposed is not None
    assert len(shown.superposed.places) == 7
    # Whatever is generated lies on the parabola, so going back from the plane finds y = x².
    for points in (shown.generated, shown.superposed):
        back = points.places.double() @ plane.axes.T * plane.scale + plane.mean
        torch.testing.assert_close(back[:, 1], back[:, 0] ** 2, rtol=1e-4, atol=1e-4)
    assert found.missing == ()


def test_without_real_images_the_basis_is_that_of_generated_ones_and_says_so(
    toy: Toy, teacher: Teacher
) -> None:
    found = generator_pictures(toy(), teacher, SMALL)
    assert found.feature_map is not None
    assert (found.feature_map.basis, found.feature_map.real) == ("generated", None)
    assert found.class_path is not None
    assert found.class_path.basis == "generated"
    assert len(found.missing) == 1
    assert "Real images: none were given" in found.missing[0]


def test_the_path_runs_along_the_parabola_and_mixup_straight(toy: Toy, teacher: Teacher) -> None:
    real = real_images([0, 1, 2] * 3)
    pair = PictureSettings(classes=3, per_class=4, superposed=3, steps=20, grid=1, pair=(2, 0))
    way = generator_pictures(toy((0.0, 1.0, 3.0)), teacher, pair, real=real).class_path
    assert way is not None
    assert way.pair == (2, 0)
    assert sorted(way.around.classes.tolist()) == [0, 0, 0, 2, 2, 2]
    ours = torch.isin(real.targets, torch.tensor([0, 2]))
    plane = principal_plane(real.images.flatten(1)[ours])
    x = torch.tensor([3.0 * (1 - t / 20) for t in range(21)], dtype=torch.double)
    expected = plane.project(torch.stack([x, x.square()], dim=1))
    torch.testing.assert_close(way.superposed.double(), expected, rtol=1e-4, atol=1e-4)
    straight = plane.project(torch.stack([x, 3 * x], dim=1))
    torch.testing.assert_close(way.mixup.double(), straight, rtol=1e-4, atol=1e-4)
    # Eleven stops; the toy's images are pixels 0.5 + 0.25 x, clipped at white.
    assert way.tiles.shape == (2, 11, 1, 1, 2)
    shown = [round(255 * min(1.0, 0.5 + 0.25 * 3 * (1 - t / 10))) for t in range(11)]
    assert way.tiles[0, :, 0, 0, 0].tolist() == pytest.approx(shown, abs=1)


def test_a_pair_that_the_map_does_not_show_gets_samples_of_its_own(
    toy: Toy, make_teacher: Callable[[int], Teacher]
) -> None:
    four = make_teacher(4)
    settings = PictureSettings(classes=2, per_class=3, superposed=2, steps=4, grid=1, pair=(1, 3))
    found = generator_pictures(toy((0.0, 1.0, 2.0, 3.0), of=four), four, settings)
    assert found.grid.classes.tolist() == [0, 2]
    assert found.class_path is not None
    assert found.class_path.around.classes.tolist() == [1, 1, 1, 3, 3, 3]
    # Real images of these two belong to the path alone.
    real = real_images([0, 2, 1, 3] * 3, 12)
    source = toy((0.0, 1.0, 2.0, 3.0), of=four)
    found = generator_pictures(source, four, settings, real=real)
    assert found.class_path is not None
    assert found.class_path.around.classes.tolist() == [1, 3] * 3
    assert found.feature_map is not None
    assert found.feature_map.real is not None
    assert found.feature_map.real.classes.tolist() == [0, 2] * 3


def test_the_grid_shows_the_first_images_of_each_class(toy: Toy, teacher: Teacher) -> None:
    # Embeddings so far apart that noise cannot mix up black, grey and white.
    found = generator_pictures(toy((-90.0, 0.0, 90.0)), teacher, SMALL)
    assert found.grid.tiles.shape == (3, 2, 1, 1, 2)
    assert found.grid.classes.tolist() == [0, 1, 2]
    firsts = found.grid.tiles[:, :, 0, 0, 0]
    assert firsts[0].tolist() == [0, 0]
    assert firsts[2].tolist() == [255, 255]
    mixture = ClassMixture(torch.tensor([0] * 4 + [1] * 4 + [2] * 4)[:, None], torch.ones(12, 1))
    source = toy((-90.0, 0.0, 90.0))
    (every,) = MixtureImages(source, teacher).drawn(mixture, seed=0)
    pixels = (255 * teacher.input.pixels(every[[4, 5]])).round().byte()
    assert torch.equal(found.grid.tiles[1], pixels)


def test_a_generator_without_labels_shows_what_it_can(toy: Toy, teacher: Teacher) -> None:
    source = toy(condition="noise", labelled=False)
    found = generator_pictures(source, teacher, SMALL, real=real_images(None))
    assert found.class_path is None
    assert found.feature_map is not None
    assert found.feature_map.superposed is None
    assert found.feature_map.predicted
    assert found.grid.classes.tolist() == [-1] * 3
    assert "makes images without labels" in found.missing[0]
    assert "they have no labels" in found.missing[1]
    # What the teacher says: of x and x², worked out from its logits.
    places = found.feature_map.generated
    plane = principal_plane(real_images(None).images.flatten(1))
    back = places.places.double() @ plane.axes.T * plane.scale + plane.mean
    for (x, y), label in zip(back.tolist(), places.classes.tolist(), strict=True):
        logits = [x * (c + 1) - y * c for c in range(3)]
        assert logits[label] == pytest.approx(max(logits), abs=1e-4)


def test_real_images_of_other_classes_are_left_out_and_few_make_no_basis(
    toy: Toy, make_teacher: Callable[[int], Teacher]
) -> None:
    four = make_teacher(4)
    settings = PictureSettings(classes=2, per_class=3, superposed=2, steps=4, grid=1)
    source = toy((0.0, 1.0, 2.0, 3.0), of=four)
    # Classes 0 and 2 are shown; two real images are of these.
    found = generator_pictures(source, four, settings, real=real_images([0, 2] + [1, 3, 3] * 2, 8))
    assert found.feature_map is not None
    assert (found.feature_map.basis, found.feature_map.real) == ("generated", None)
    assert "2 are of the classes shown" in found.missing[0]
    none = generator_pictures(source, four, settings, real=real_images([1, 3], 2))
    assert "0 are of the classes shown" in none.missing[0]


def test_a_map_that_cannot_be_drawn_is_left_out_with_the_reason(toy: Toy, teacher: Teacher) -> None:
    same = ImageSet(torch.ones(5, 1, 1, 2))
    found = generator_pictures(toy(), teacher, SMALL, real=same)
    assert found.feature_map is None
    assert any("The map of features: A plane needs images that differ" in m for m in found.missing)
    # The path has generated samples to fall back on: no real image has a class.
    assert found.class_path is not None


def test_a_diverged_generator_leaves_its_map_out(toy: Toy, teacher: Teacher) -> None:
    source = toy((0.0, math.nan, 3.0))
    for real in (None, real_images([0, 1, 2] * 3)):
        found = generator_pictures(source, teacher, SMALL, real=real)
        assert found.feature_map is None
        assert any("finite" in sentence for sentence in found.missing)


def test_everything_comes_back_from_the_file(toy: Toy, teacher: Teacher, tmp_path: Path) -> None:
    named = Teacher("t", teacher.module, teacher.input, class_names=("ant", "bee", "cat"))
    for source, real in (
        (toy(), real_images([0, 1, 2] * 3)), (toy(condition="noise", labelled=False), None),
    ):  # fmt: skip
        found = generator_pictures(source, named, SMALL, real=real)
        found.save(tmp_path / "sub" / "p.safetensors")
        read = GeneratorPictures.load(tmp_path / "sub" / "p.safetensors")
        assert flat(read) == flat(found)
        assert read.name_of(1) == "bee"
        assert read.name_of(7) == "class 7"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["p.safetensors"]


def flat(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [value.dtype, value.tolist()]
    if hasattr(value, "__dataclass_fields__"):
        return {name: flat(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"p\.safetensors: missing or not readable"):
        GeneratorPictures.load(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": 1}, "classes"), ({"per_class": 1}, "per_class"), ({"steps": 0}, "steps"),
        ({"superposed": 0}, "superposed"), ({"grid": 0}, "grid"), ({"grid": 101}, "1..100"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        PictureSettings(**wrong)


@pytest.mark.parametrize("pair", [(0, 3), (-1, 0), (1, 1)])
def test_a_pair_that_there_is_not_is_refused(
    toy: Toy, teacher: Teacher, pair: tuple[int, int]
) -> None:
    with pytest.raises(RecipeError, match="two different classes of test:parabola, 0 to 2"):
        generator_pictures(toy(), teacher, PictureSettings(pair=pair))


def test_superposed_samples_are_spread_over_pairs_and_shares(toy: Toy, teacher: Teacher) -> None:
    # Without noise to speak of, a superposed image's first pixel is its mixture of embeddings.
    settings = PictureSettings(classes=3, per_class=2, superposed=6, steps=2, grid=1)
    found = generator_pictures(toy((0.0, 1000.0, 5000.0)), teacher, settings)
    assert found.feature_map is not None
    assert found.feature_map.superposed is not None
    fitted = generator_pictures(toy((0.0, 1000.0, 5000.0)), teacher, settings).feature_map
    assert fitted is not None
    # The first coordinate grows with x along the parabola; pairs 01, 02, 12 at λ = 1/4, then 3/4.
    expected = [250.0, 1250.0, 2000.0, 750.0, 3750.0, 4000.0]
    order = found.feature_map.superposed.places[:, 0].argsort().tolist()
    by_x = sorted(range(6), key=lambda i: expected[i])
    assert order in (by_x, by_x[::-1])
    assert math.isfinite(float(fitted.generated.places.sum()))


@pytest.mark.parametrize("labels", [[0] * 9, [0, 1]])
def test_real_images_stand_around_a_path_only_where_both_classes_are_there(
    labels: list[int], toy: Toy, teacher: Teacher
) -> None:
    found = generator_pictures(toy(), teacher, SMALL, real=real_images(labels, len(labels)))
    assert found.class_path is not None
    assert found.class_path.basis == "generated"
    assert set(found.class_path.around.classes.tolist()) == {0, 1}
    assert any("Real images around the path: not enough are of classes 0 and 1" in m
               for m in found.missing)  # fmt: skip

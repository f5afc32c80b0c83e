"""Nearest neighbours against a loop over all pairs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import emptyset.evaluate.nearest_neighbours as module
from emptyset.errors import ImagesError
from emptyset.evaluate.nearest_neighbours import QUANTILES, nearest, nearest_neighbours
from emptyset.images.folder import LazyImages
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SilentMonitor, State
from emptyset.teachers.teacher import InputSpec, Teacher

SPEC = InputSpec((2, 3, 5), (0.4, 0.5), (0.2, 0.25))


def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(30, 6), nn.Tanh(), nn.Linear(6, 4))
    return Teacher("test", net.requires_grad_(False).eval(), SPEC)


def images(count: int, seed: int) -> ImageSet:
    # Beyond black and white too: what cannot be shown cannot make a difference.
    drawn = torch.Generator().manual_seed(seed)
    return ImageSet(SPEC.normalise(1.4 * torch.rand(count, 2, 3, 5, generator=drawn) - 0.2))


def vectors(given: ImageSet) -> tuple[list[list[float]], list[list[float]]]:
    """Pixels as picture files hold them, and features."""
    codes = (SPEC.pixels(given.images) * 255).round()
    features = teacher().module[:3](given.images)
    return codes.flatten(1).double().tolist(), features.double().tolist()


def loop(
    queries: list[list[float]], references: list[list[float]], own: bool
) -> tuple[list[float], list[int]]:
    distances, indices = [], []
    for i, query in enumerate(queries):
        rows = [
            math.inf if own and i == j else math.dist(query, reference)
            for j, reference in enumerate(references)
        ]
        distances.append(min(rows))
        indices.append(rows.index(min(rows)))
    return distances, indices


def quantile(values: list[float], share: float) -> float:
    """Between the two nearest ranks, as numpy and torch do by default."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of queries and of references, none of them even."""
    monkeypatch.setattr(module, "MOST_ROWS", 4)


def test_every_distance_is_that_of_a_loop_over_all_pairs(small_blocks: None) -> None:
    made, real = images(11, 0), images(17, 1)
    found = nearest_neighbours(made, real, teacher(), closest=3, batch_size=5)
    unit = 255 * 30**0.5
    for space, queries, references, scale in zip(
        (found.pixels, found.features), vectors(made), vectors(real), (unit, 1.0), strict=True
    ):
        to_real, which = loop(queries, references, own=False)
        between, _ = loop(references, references, own=True)
        to_real, between = [d / scale for d in to_real], [d / scale for d in between]
        assert space.to_real == pytest.approx([quantile(to_real, q) for q in QUANTILES], rel=1e-5)
        expected = [quantile(between, q) for q in QUANTILES]
        assert space.between_real == pytest.approx(expected, rel=1e-5)
        assert space.close == pytest.approx(quantile(between, 0.01), rel=1e-5)
        assert space.closer == sum(d < space.close for d in to_real) / 11
        order = sorted(range(11), key=lambda i: to_real[i])[:3]
        assert space.closest.images.tolist() == order
        assert space.closest.real.tolist() == [which[i] for i in order]
        assert space.closest.distances.tolist() == pytest.approx([to_real[i] for i in order])
    assert (found.count, found.real_count, found.pixel_size) == (11, 17, (3, 5))
    tile = (SPEC.pixels(made.images) * 255).round().byte()[found.pixels.closest.images[0]]
    assert torch.equal(found.pixels.closest.tiles[0], tile)


@pytest.mark.parametrize("own", [False, True])
def test_blocks_change_nothing(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.Generator().manual_seed(3)
    queries = torch.randint(0, 256, (13, 7), generator=drawn, dtype=torch.uint8)
    references = queries if own else torch.randint(0, 256, (10, 7), generator=drawn).byte()
    expected = loop(queries.tolist(), references.tolist(), own)
    for rows in (1, 3, 100):
        monkeypatch.setattr(module, "MOST_ROWS", rows)
        distances, indices = nearest(queries, references, own=own)
        assert distances.tolist() == pytest.approx(expected[0], rel=1e-14)
        assert indices.tolist() == expected[1]


def test_of_equally_near_references_the_first_is_named(small_blocks: None) -> None:
    references = torch.tensor([[9.0], [1.0], [5.0], [9.0], [1.0], [3.0]])
    distances, indices = nearest(torch.tensor([[0.0], [2.0]]), references)
    assert distances.tolist() == [1.0, 1.0]
    assert indices.tolist() == [1, 1]


def test_a_copy_is_found_at_no_distance(small_blocks: None) -> None:
    real = images(9, 1)
    made = ImageSet(torch.cat([images(4, 0).images, real.images[7:8]]))
    found = nearest_neighbours(made, real, teacher(), closest=1)
    assert found.pixels.to_real[0] == 0.0
    # Batches of other sizes round the teacher's features differently.
    assert found.features.to_real[0] == pytest.approx(0.0, abs=1e-5)
    for space in (found.pixels, found.features):
        assert space.closer >= 1 / 5
        assert (space.closest.images.item(), space.closest.real.item()) == (4, 7)


def test_real_images_that_are_there_twice_are_their_own_neighbours() -> None:
    twice = ImageSet(images(3, 1).images.repeat(2, 1, 1, 1))
    made = ImageSet(torch.cat([images(4, 0).images, twice.images[:1]]))
    found = nearest_neighbours(made, twice, teacher())
    assert set(found.pixels.between_real) == {0.0}
    # Nothing is nearer than that, and what says so is told.
    assert (found.pixels.close, found.pixels.closer) == (0.0, 0.0)


def test_large_images_are_compared_small() -> None:
    spec = InputSpec((1, 128, 96), (0.5,), (0.25,))
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    large = Teacher("test", net.requires_grad_(False).eval(), spec)
    drawn = torch.Generator().manual_seed(0)
    sets = [ImageSet(torch.randn(n, 1, 128, 96, generator=drawn)) for n in (2, 3)]
    found = nearest_neighbours(*sets, large, closest=9)
    assert found.pixel_size == (64, 48)
    assert found.pixels.closest.tiles.shape == (2, 1, 64, 48)


def stream(whole: ImageSet, chosen: list[int]) -> LazyImages:
    """Some of them, read batch by batch."""

    def read(indices: Tensor, size: int) -> Any:
        yield from whole.images[indices].split(size)

    indices = torch.tensor(chosen, dtype=torch.long)
    return LazyImages(None, read, indices, None, "npz")  # type: ignore[arg-type]


def test_numbers_of_chosen_images_are_those_of_their_source() -> None:
    whole = images(12, 1)
    found = nearest_neighbours(ImageSet(whole.images[11:]), stream(whole, [2, 5, 11]), teacher())
    assert found.pixels.closest.real.tolist() == [11]


@pytest.mark.parametrize(("made", "real"), [(3, 1), (3, 0), (0, 4)])
def test_too_few_images_to_compare_are_refused(made: int, real: int) -> None:
    sets = [stream(images(6, seed), list(range(n))) for seed, n in enumerate((made, real))]
    message = f"at least 1 made image and 2 real ones.*Got {made} and {real}"
    with pytest.raises(ImagesError, match=message):
        nearest_neighbours(*sets, teacher())


class Killed(SilentMonitor):
    """Keeps states, and ends the work after some of them."""

    def __init__(self, states: dict[str, State], after: int) -> None:
        self.states, self.left, self.kept = states, after, 0

    def keep(self, key: str, state: Any, *, final: bool = False) -> None:
        self.states[key] = {name: value.clone() for name, value in state().items()}
        self.kept += 1
        if self.kept == self.left:
            raise StopIteration

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def test_a_killed_search_goes_on_to_the_same_result(small_blocks: None) -> None:
    made, real = images(11, 0), images(9, 1)
    whole = nearest_neighbours(made, real, teacher())
    # 11 images are 3 blocks of 4, 9 real ones too: twelve blocks in all four searches.
    states: dict[str, State] = {}
    with pytest.raises(StopIteration):
        nearest_neighbours(made, real, teacher(), monitor=Killed(states, 5))
    rest = Killed(states, 99)
    again = nearest_neighbours(made, real, teacher(), monitor=rest)
    assert again.to_json() == whole.to_json()
    assert rest.kept == 7


def test_the_teacher_stays_as_it_was() -> None:
    asked = teacher()
    before = {name: value.clone() for name, value in asked.module.state_dict().items()}
    nearest_neighbours(images(3, 0), images(4, 1), asked)
    assert all(torch.equal(v, before[k]) for k, v in asked.module.state_dict().items())
    assert not any(m._forward_pre_hooks for m in asked.module.modules())

"""TexQ-style: one image per class first, then a generator that is led by what they cause."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_teachers import two_convolutions
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.generators.calibration_centres import CalibrationCentres
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.losses.texture_energy import texture_energies
from emptyset.monitor import SILENT, SilentMonitor, State
from emptyset.sources.texq import TexQ, TexQConfig
from emptyset.teachers.teacher import InputSpec, Teacher

CLASSES, BATCH = 5, 6
SMALL = TexQConfig.smallest()


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions(classes=CLASSES, bias=True, scale=0.5, equal_norms=False)


def groundwork(teacher: Teacher, config: TexQConfig) -> CalibrationCentres:
    return CalibrationCentres(teacher, CLASSES, config.first_stage())


def test_images_of_the_first_stage_are_made_for_their_classes(teacher: Teacher) -> None:
    config = replace(SMALL, centre_steps=60, texture_weight=0.0)
    found = groundwork(teacher, config)
    labels = torch.tensor([3, 1, 4])
    images = found.images_of(labels, seed=1, monitor=SILENT)
    assert images.images.shape == (3, 3, 8, 12)
    assert images.targets is not None
    assert images.targets.tolist() == [3, 1, 4]
    said = F.log_softmax(teacher.module(images.images), dim=1)
    # Each is surer of its class than the others are.
    own = said[range(3), labels]
    assert bool((said[:, labels].amax(dim=0) == own).all())


def test_the_first_stages_loss_is_labels_layered_statistics_and_textures(teacher: Teacher) -> None:
    config = replace(SMALL, texture_weight=0.7, texture_highest=0.1, texture_lowest=0.05)
    images = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    labels, frozen = torch.tensor([3, 1, 4]), FrozenTeacher(teacher)
    seen = replace(frozen.look(images), targets=labels)
    net, shown = teacher.module, frozen.units.to_teacher(images)
    x1 = net.conv1(shown)
    x2 = net.conv2(net.bn1(x1).relu())
    gaps = [
        F.mse_loss(x.mean((0, 2, 3)), norm.running_mean)
        + F.mse_loss(x.var((0, 2, 3), correction=0), norm.running_var)
        for x, norm in ((x1, net.bn1), (x2, net.bn2))
    ]
    energies = texture_energies(images).sort(dim=1, descending=True).values
    texture = F.relu(energies[:, 0] - 0.1) + F.relu(0.05 - energies[:, :9]).sum(1)
    expected = 5 * F.cross_entropy(net(shown), labels) + (0.2 * gaps[0] + 1.1 * gaps[1]) / 2
    expected = expected + 0.7 * texture.mean()
    found = groundwork(teacher, config).objective(seen)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_texture_term_spreads_their_energies(teacher: Teacher) -> None:
    largest = []
    for weight in (0.0, 50.0):
        config = replace(SMALL, centre_steps=60, texture_weight=weight, texture_highest=0.12)
        images = groundwork(teacher, config).images_of(torch.arange(4), seed=1, monitor=SILENT)
        largest.append(texture_energies(images.images).amax(dim=1).mean().item())
    assert largest[1] < largest[0] - 0.02


def test_the_first_stage_is_by_default_as_reported_and_as_in_synqs_code() -> None:
    assert vars(TexQConfig().first_stage()) == {
        "steps": 1500, "learning_rate": 0.5, "minimum_rate": 0.05, "patience": 50,
        "label_weight": 5.0, "shallow": 0.2, "deep": 1.1, "texture_weight": 1.0,
        "highest": 0.3, "lowest": 0.015, "dominant": 9, "at_once": 128,
    }  # fmt: skip


def test_every_setting_of_the_first_stage_arrives_under_its_own_name() -> None:
    config = TexQConfig(
        centre_steps=70, centre_learning_rate=0.9, centre_minimum_rate=0.02, centre_patience=4,
        centre_label_weight=3.0, shallow_weight=0.6, deep_weight=0.8, texture_weight=0.7,
        texture_highest=0.12, texture_lowest=0.04, texture_dominant=5, centre_batch=11,
    )  # fmt: skip
    assert vars(config.first_stage()) == {
        "steps": 70, "learning_rate": 0.9, "minimum_rate": 0.02, "patience": 4,
        "label_weight": 3.0, "shallow": 0.6, "deep": 0.8, "texture_weight": 0.7,
        "highest": 0.12, "lowest": 0.04, "dominant": 5, "at_once": 11,
    }  # fmt: skip


class Rates(SilentMonitor):
    """Hears the step size and the number of steps."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.totals: set[int] = set()

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        kept = state()
        if "schedule.0.rate" in kept:
            self.rates.append(kept["schedule.0.rate"].item())

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        self.totals.add(total)


def test_where_the_loss_stands_still_the_first_stages_steps_fall_as_torchs_plateau(
    teacher: Teacher,
) -> None:
    nothing = dict.fromkeys(
        ("centre_label_weight", "shallow_weight", "deep_weight", "texture_weight"), 0.0
    )
    config = TexQConfig(
        centre_steps=14, centre_learning_rate=0.9, centre_minimum_rate=0.02, centre_patience=3,
        **nothing,
    )  # fmt: skip
    heard = Rates()
    groundwork(teacher, config).images_of(torch.arange(4), seed=1, monitor=heard)
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.1, patience=3, min_lr=0.02)
    expected = []
    for _ in range(13):
        plateau.step(0.0)
        expected.append(adam.param_groups[0]["lr"])
    assert heard.rates == pytest.approx(expected)
    assert sorted(set(expected)) == pytest.approx([0.02, 0.09, 0.9])
    assert heard.totals == {14}


@pytest.mark.parametrize("at_once", [2, 3, 128])
def test_centres_are_what_the_classes_images_cause(at_once: int, teacher: Teacher) -> None:
    found = groundwork(teacher, replace(SMALL, centre_batch=at_once))
    made: list[tuple[list[int], Tensor]] = []
    whole = found.images_of

    def listen(labels: Tensor, **others: Any) -> Any:
        images = whole(labels, **others)
        made.append((labels.tolist(), images.images))
        return images

    found.images_of = listen  # type: ignore[method-assign]
    found.lay(seed=4, monitor=SILENT)
    assert [label for labels, _ in made for label in labels] == list(range(CLASSES))
    assert max(len(labels) for labels, _ in made) <= at_once
    with torch.no_grad():
        first = teacher.module.conv1(torch.cat([images for _, images in made]))
        second = teacher.module.conv2(teacher.module.bn1(first).relu())
    for number, (x, norm) in enumerate([(first, teacher.module.bn1), (second, teacher.module.bn2)]):
        shift, variance = x.mean((2, 3)) - norm.running_mean, x.var((2, 3), correction=0)
        torch.testing.assert_close(found.centres.shifts[number], shift, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.centres.variances[number], variance, atol=1e-5, rtol=1e-4)


class KilledError(Exception):
    pass


class Disk(SilentMonitor):
    """Keeps every state as a file would, and is killed after some."""

    def __init__(self, limit: int) -> None:
        self.states: dict[str, State] = {}
        self.limit = limit

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.states[key] = {name: value.clone() for name, value in state().items()}
        self.limit -= 1
        if self.limit == 0:
            raise KilledError

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def test_killed_in_the_first_stage_it_goes_on_to_the_same_centres(teacher: Teacher) -> None:
    config = replace(SMALL, centre_steps=6)
    whole = TexQ(config).source(teacher, seed=3)
    whole.begin(4, BATCH)
    disk = Disk(limit=9)
    with pytest.raises(KilledError):
        TexQ(config).source(teacher, seed=3).begin(4, BATCH, monitor=disk)
    assert len({key.split(".")[1] for key in disk.states}) == 2
    resumed = TexQ(config).source(teacher, seed=3)
    resumed.begin(4, BATCH, monitor=disk)
    kept, expected = resumed.state(), whole.state()
    named = [name for name in expected if name.startswith("groundwork|")]
    assert len(named) == 4
    for name in named:
        assert torch.equal(kept[name], expected[name]), name


def test_a_kept_state_brings_its_centres(teacher: Teacher) -> None:
    source, other = (TexQ(SMALL).source(teacher, seed=seed) for seed in (3, 9))
    for one in (source, other):
        one.begin(4, BATCH)
    source.next_batch(BATCH)
    other.load_state({name: value.clone() for name, value in source.state().items()})
    for _ in range(2):
        assert torch.equal(source.next_batch(BATCH).images, other.next_batch(BATCH).images)


def test_drawing_needs_no_centres(teacher: Teacher) -> None:
    source = TexQ(SMALL).source(teacher, seed=3)
    source.drawn(4, seed=0)
    assert not any(name.startswith("groundwork|") for name in source.state())


@pytest.mark.parametrize("centres", ["own", "all"])
def test_the_generators_loss_is_labels_statistics_and_centres(
    centres: str, teacher: Teacher
) -> None:
    source = TexQ(replace(SMALL, centres=centres, centre_weight=0.3)).source(teacher, seed=3)
    source.begin(4, BATCH, precision="float32")
    weights = {term.name: term.weight for term in source.method.terms}
    assert weights == {"cross entropy": 1.0, "batch norm statistics": 0.4, "class centres": 0.3}
    judged: list[Tensor] = []
    source._note = lambda _images, terms: judged.append(terms.detach())
    lesson = source.next_batch(BATCH)
    terms = dict(zip(weights, judged[0].tolist(), strict=True))
    assert lesson.targets is not None
    net = teacher.module
    with torch.no_grad():
        x1 = net.conv1(lesson.images)
        x2 = net.conv2(net.bn1(x1).relu())
        label = F.cross_entropy(net(lesson.images), lesson.targets)
    gaps = [
        F.mse_loss(x.mean((0, 2, 3)), norm.running_mean)
        + F.mse_loss(x.var((0, 2, 3), correction=0), norm.running_var)
        for x, norm in ((x1, net.bn1), (x2, net.bn2))
    ]
    assert source.method.groundwork is not None
    found = source.method.groundwork.centres  # type: ignore[attr-defined]
    # Two layers: the second is the deeper half.
    means, variances = found.shifts[1] + net.bn2.running_mean, found.variances[1]
    if centres == "own":
        expected = F.mse_loss(x2.mean((2, 3)), means[lesson.targets])
        expected = expected + F.mse_loss(x2.var((2, 3), correction=0), variances[lesson.targets])
    else:
        pooled = variances.mean(0) + means.var(0, correction=0)
        expected = F.mse_loss(x2.mean((0, 2, 3)), means.mean(0))
        expected = expected + F.mse_loss(x2.var((0, 2, 3), correction=0), pooled)
        expected = expected / (2 * BATCH)  # as SynQ: by the layers and by the images
    assert terms["cross entropy"] == pytest.approx(label.item(), rel=1e-3)
    assert terms["batch norm statistics"] == pytest.approx(sum(gaps).item() / 2, rel=1e-3)
    assert terms["class centres"] == pytest.approx(expected.item(), rel=1e-3)


def test_without_their_weight_no_centres_are_made(teacher: Teacher) -> None:
    source = TexQ(replace(SMALL, centre_weight=0.0)).source(teacher, seed=3)
    assert source.method.groundwork is None
    assert source.next_batch(BATCH).targets is not None


def test_a_teacher_without_batch_norm_is_told_what_else_there_is() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(240, 3))
    spec = InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3)
    plain = Teacher("test", net.requires_grad_(False).eval(), spec)
    with pytest.raises(UnsupportedModelError, match="use the source `zaq`"):
        TexQ(SMALL).source(plain, seed=0)


def test_the_record_says_that_it_is_a_reconstruction() -> None:
    from emptyset.registry import sources

    entry = sources.get("texq")
    assert "reconstruction" in entry.sentence
    assert "reconstruction" in entry.source


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centres": "each"}, "'centres' must be one of own, all"),
        ({"centre_batch": 1}, "'centre_batch' must be at least 2"),
        ({"centre_steps": 0}, "'centre_steps' must be positive"),
        ({"texture_dominant": 15}, "'texture_dominant' must be 1 to 14"),
        ({"texture_highest": 1.5}, "'texture_highest' must lie in 0..1"),
        ({"centre_weight": -0.1}, "'centre_weight' must not be negative"),
        ({"deep_weight": -0.1}, "'deep_weight' must not be negative"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TexQConfig(**settings)


def test_without_batch_norm_the_advice_names_every_term_that_needs_it() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(240, CLASSES))
    spec = InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3)
    plain = Teacher("test", net.requires_grad_(False).eval(), spec)
    with pytest.raises(UnsupportedModelError, match="statistics_weight and centre_weight to 0"):
        TexQ(SMALL).source(plain, seed=0)
    without = replace(SMALL, statistics_weight=0.0)
    with pytest.raises(UnsupportedModelError, match="Set centre_weight to 0"):
        TexQ(without).source(plain, seed=0)
    assert TexQ(replace(without, centre_weight=0.0)).source(plain, seed=0).next_batch(BATCH)


def test_centres_alone_may_shape_the_images() -> None:
    alone = {"label_weight": 0.0, "statistics_weight": 0.0}
    assert TexQConfig(**alone).centre_weight == 0.02
    with pytest.raises(ValueError, match="are all 0: nothing shapes the images"):
        TexQConfig(**alone, centre_weight=0.0)

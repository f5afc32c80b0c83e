"""Genie-M: scales learnt beside a base that stays, and rates in the right units."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.quantizers.adaptive_rounding import rounding_share
from emptyset.reconstruction.learnables import logits_of
from emptyset.reconstruction.optimisation import Optimisation
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.genie import Genie, GenieConfig
from emptyset.teachers.teacher import InputSpec, Teacher


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.linear = nn.Conv2d(6, 7, 3), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.linear(F.relu(self.second(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Normed().requires_grad_(False).eval()
    module.norm.running_var.copy_(torch.tensor([1e-4, 0.1, 1.0, 2.0, 30.0, 1e3]))
    return Teacher("test", module, InputSpec((3, 8, 7), (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    levels = torch.randn(22, 3, 1, 1, generator=generator)
    return ImageSet(levels + 0.5 * torch.randn(22, 3, 8, 7, generator=generator))


def learnt(
    teacher: Teacher, images: ImageSet, batch_norm: str = "fold", **settings: object
) -> tuple[Student, Student]:
    """As calibrated, and as learnt."""
    start = prepare(teacher, "w3a3", plan="edges_8bit", batch_norm=batch_norm)
    Calibrate(CalibrateConfig()).refine(start, images)
    student = start.copy()
    given = {"steps": 40, "batch_size": 8, "rounding_learning_rate": 2e-2, "penalty": 1e-3}
    Genie(GenieConfig(**given | settings)).refine(student, images, seed=2)
    return start, student


def test_before_the_first_step_it_is_rounding_to_nearest(
    teacher: Teacher, images: ImageSet
) -> None:
    start, student = learnt(teacher, images, steps=0)
    assert torch.equal(student(images.images), start(images.images))
    for name, quantizer in start.quantizers.items():
        if quantizer.axis is not None:
            nearest = quantizer.codes(start.program.get_parameter(name))
            codes = student.quantizers[name].codes(student.program.get_parameter(name))
            assert torch.equal(codes, nearest)


@pytest.mark.parametrize("batch_norm", ["fold", "frozen"])
def test_scales_are_learnt_and_the_base_is_that_of_the_first_scale(
    batch_norm: str, teacher: Teacher, images: ImageSet
) -> None:
    start, student = learnt(teacher, images, batch_norm)
    for name, quantizer in student.quantizers.items():
        before = start.quantizers[name]
        assert torch.equal(quantizer.zero_point, before.zero_point)
        if quantizer.axis is not None:
            weight = start.program.get_parameter(name)
            shape = [-1, *[1] * (weight.dim() - 1)]
            floors = (weight * (1 / before.scale.view(shape))).floor().to(torch.int32)
            assert torch.equal(quantizer.base_codes, floors)
    # Where learning does not help, a block is left as it was; that is never the last one here.
    last = "linear.weight"
    assert not torch.equal(student.quantizers[last].scale, start.quantizers[last].scale)


def test_folded_scales_are_learnt_relatively(teacher: Teacher, images: ImageSet) -> None:
    """BatchNorm's factors span five orders of magnitude here: absolute rates would wreck some."""
    start, student = learnt(teacher, images, weight_scale_learning_rate=1e-3)
    for name, quantizer in student.quantizers.items():
        ratio = quantizer.scale / start.quantizers[name].scale
        # 40 steps of at most a thousandth each, in a cosine.
        assert (ratio - 1).abs().max().item() < 0.03


def test_every_rounding_is_decided_at_the_end(
    teacher: Teacher, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published course, but in a tenth of the steps at ten times the rate of V."""
    shares, run = [], Optimisation.run

    def watched(self: Optimisation, *given: object) -> Tensor:
        flat = run(self, *given)
        places = [part.logits for part in self.learnables.parts if part.logits is not None]
        shares.extend(rounding_share(logits_of(flat, place)).flatten() for place in places)
        return flat

    monkeypatch.setattr(Optimisation, "run", watched)
    published = GenieConfig()
    learnt(
        teacher, images, "frozen", steps=published.steps // 10,
        rounding_learning_rate=10 * published.rounding_learning_rate,
        penalty=published.penalty, batch_size=published.batch_size,
    )  # fmt: skip
    found = torch.cat(shares)
    assert len(found) == 6 * 3 * 9 + 7 * 6 * 9 + 5 * 7
    assert torch.minimum(found, 1 - found).max().item() < 0.01


def test_dead_channels_stay_dead_with_absolute_rates(images: ImageSet) -> None:
    """Their scale is the smallest there is; a published step is a hundred thousand times that."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Normed().requires_grad_(False).eval()
    module.first.weight[2], module.second.weight[4] = 0.0, 0.0
    module.second.bias[4] = 0.0
    teacher = Teacher("test", module, InputSpec((3, 8, 7), (0.5,) * 3, (0.25,) * 3))
    for batch_norm in ("fold", "frozen"):
        start, student = learnt(teacher, images, batch_norm, scale_rates="absolute")
        for layer, channel in (("first", 2), ("second", 4)):
            before, after = (one.quantizers[f"{layer}.weight"] for one in (start, student))
            assert before.scale[channel] < 1e-8
            assert torch.isfinite(after.scale).all()
            assert (after.scale > 0).all()
            weight = after(student.program.get_parameter(f"{layer}.weight"))
            assert torch.equal(weight[channel], torch.zeros_like(weight[channel]))
        for record in student.records:
            assert all(block["final"] <= block["start"] for block in record["blocks"])
        with torch.no_grad():
            assert torch.isfinite(student(images.images)).all()


def test_rates_follow_what_becomes_of_batch_norm(teacher: Teacher) -> None:
    folded = prepare(teacher, "w4a4", plan="edges_8bit")
    apart = prepare(teacher, "w4a4", plan="edges_8bit", batch_norm="frozen")

    def rates(student: Student, **settings: object) -> tuple[float, float, bool]:
        course = GenieConfig(**settings).course(student)
        return course.weight_scale_rate, course.activation_scale_rate, course.relative_scales

    published = (1e-4, 4e-5, False)
    assert rates(apart) == published
    assert rates(folded, scale_rates="absolute") == published
    assert rates(folded) == rates(apart, scale_rates="relative")
    assert rates(folded)[2]
    assert rates(apart, weight_scale_learning_rate=0.5)[:2] == (0.5, 4e-5)


def test_defaults_are_those_of_the_released_code(teacher: Teacher) -> None:
    student = prepare(teacher, "w4a4", plan="edges_8bit", batch_norm="frozen")
    course = GenieConfig().course(student)
    config = course.config
    assert (course.steps, config.batch_size, config.rounding_learning_rate) == (20_000, 32, 1e-3)
    assert (config.penalty, config.warm_up, config.beta_start, config.beta_end) == (1.0, 0.2, 20, 2)
    assert (course.inputs, course.kept, course.mask, course.order) == (
        "mixed", 0.5, "value", "epochs",
    )  # fmt: skip
    assert not course.scale_gradient_factor


@pytest.mark.parametrize(("settings", "named"), [
    ({"kept": -0.1}, "kept"), ({"scale_rates": "some"}, "scale_rates"),
    ({"weight_scale_learning_rate": -1.0}, "weight_scale_learning_rate"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GenieConfig(**settings)

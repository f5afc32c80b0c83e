"""DeepInversion: its objective, its two sizes, its competition with a student."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.inversion.compilation import Execution
from emptyset.inversion.engine import invert
from emptyset.inversion.method import Seen
from emptyset.inversion.standard_units import standard_units
from emptyset.losses.competition import competition_loss
from emptyset.losses.layer_statistics import layer_statistics
from emptyset.synthesizers import deep_inversion
from emptyset.synthesizers.deep_inversion import (
    DeepInversion,
    DeepInversionConfig,
    _pooled_and_rolled,
)
from emptyset.teachers.teacher import InputSpec, Teacher

EXACT = Execution(compiled=False, dtype=torch.float32)
PLAIN = {"low_resolution_share": 0.0, "warm_up": 0, "roll": 0, "flip": 0.0}


def test_the_objective_is_the_papers_sum(small_teacher: Teacher) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.double)
    features = [torch.randn(2, c, 3, 2, generator=generator, dtype=torch.double) for c in (2, 4)]
    logits = torch.randn(2, 5, generator=generator, dtype=torch.double)
    targets = torch.tensor([4, 0])
    means = [0.3 * torch.ones(c).double() for c in (2, 4)]
    variances = [0.5 * torch.ones(c).double() for c in (2, 4)]
    layers = tuple(map(layer_statistics, features, means, variances))
    config = DeepInversionConfig(
        statistics_weight=0.2, first_layer_multiplier=7.0, smoothness_weight=0.3,
        norm_weight=0.5, class_weight=2.0,
    )  # fmt: skip
    objective = DeepInversion(config).objective_for(standard_units(small_teacher.input))
    found = objective(Seen(images, logits, None, layers, targets, {}))

    expected = 0.0
    for x, mean, var, weight in zip(features, means, variances, (7.0, 1.0), strict=True):
        v, m = torch.var_mean(x, (0, 2, 3), correction=0)
        expected += 0.2 * weight * float((m - mean).norm() + (v - var).norm())
    for shifted in (
        images[..., 1:] - images[..., :-1],
        images[:, :, 1:] - images[:, :, :-1],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    ):
        expected += 0.3 * float((shifted**2).sum() ** 0.5)
    expected += 0.5 * float((images[0] ** 2).sum() ** 0.5 + (images[1] ** 2).sum() ** 0.5) / 2
    expected -= 2.0 * float(logits.log_softmax(1)[[0, 1], [4, 0]].mean())
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_teacher_sees_half_the_size_first_and_the_best_is_one_of_full_size(
    small_teacher: Teacher,
) -> None:
    shown: list[Tensor] = []
    # At half the size the loss is smaller; it must not win. At full size the second is the best.
    added = iter([0.0] * 4 + [900.0, 300.0, 600.0])

    class Watched(DeepInversion):
        def objective_for(self, *parts):  # type: ignore[no-untyped-def]
            inner = super().objective_for(*parts)

            def objective(seen: Seen) -> Tensor:
                shown.append(seen.images.detach().clone())
                return inner(seen) + next(added)

            return objective

    config = DeepInversionConfig(
        steps=7, low_resolution_share=0.6, warm_up=1, roll=0, flip=0.0, clip=False
    )
    images = Watched(config).synthesize(small_teacher, 4, seed=0).images
    assert [tuple(x.shape[2:]) for x in shown] == [(4, 5)] * 4 + [(8, 10)] * 3
    torch.testing.assert_close(images, shown[5])


def test_half_the_size_is_the_mean_of_four_pixels_shifted_and_mirrored() -> None:
    images = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    drawn = {"roll_rows": torch.tensor([1, 0]), "roll_columns": torch.tensor([2, 1, 0])}
    found = _pooled_and_rolled(images, drawn)
    for i in range(2):
        for j in range(3):
            block = images[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            torch.testing.assert_close(found[:, :, 1 - i, 2 - j], block)


def test_pixels_stay_between_black_and_white(make_teacher: Callable[..., Teacher]) -> None:
    teacher = make_teacher(mean=0.3, std=0.2)
    config = DeepInversionConfig(steps=6, learning_rate=3.0, **PLAIN)  # type: ignore[arg-type]
    pixels = DeepInversion(config).synthesize(teacher, 6, seed=0).images * 0.2 + 0.3
    assert pixels.min().item() == pytest.approx(0.0, abs=1e-6)
    assert pixels.max().item() == pytest.approx(1.0, abs=1e-6)


def test_the_loss_falls(small_teacher: Teacher) -> None:
    losses: list[float] = []

    class Watched(DeepInversion):
        def objective_for(self, *parts):  # type: ignore[no-untyped-def]
            inner = super().objective_for(*parts)

            def objective(seen: Seen) -> Tensor:
                loss = inner(seen)
                losses.append(loss.item())
                return loss

            return objective

    config = DeepInversionConfig(steps=60, low_resolution_share=0.0, warm_up=3, roll=1)
    Watched(config).synthesize(small_teacher, 8, seed=0)
    assert losses[-1] < 0.6 * losses[0]


def test_a_student_is_competed_with(make_teacher: Callable[..., Teacher]) -> None:
    teacher, student = make_teacher(seed=0), make_teacher(seed=1).module

    def divergence(weight: float) -> float:
        config = DeepInversionConfig(
            steps=40,
            adaptive_weight=weight,
            statistics_weight=1e-9,
            class_weight=0.0,
            **PLAIN,  # type: ignore[arg-type]
        )
        method = DeepInversion(config, student=student).method(teacher)
        images = invert(method, teacher, 8, seed=0, settings={}, execution=EXACT).images
        p, q = (net(images).softmax(1) for net in (teacher.module, student))
        return float((p - q).abs().sum(1).mean())

    assert divergence(10.0) > 1.3 * divergence(0.0)
    assert all(p.grad is None for p in student.parameters())


def test_without_a_student_the_adaptive_form_says_how_to_give_one(small_teacher: Teacher) -> None:
    made = DeepInversion(DeepInversionConfig(adaptive_weight=0.2))
    with pytest.raises(RecipeError, match=r"student=\.\.\."):
        made.synthesize(small_teacher, 4, seed=0)


def test_a_student_named_in_the_settings_sees_the_same_pixels(
    make_teacher: Callable[..., Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, named = make_teacher(seed=0), make_teacher(seed=1, mean=0.3, std=0.2)
    monkeypatch.setattr(deep_inversion, "named_network", lambda name, _: {"test:1": named}[name])
    config = DeepInversionConfig(
        steps=3, adaptive_weight=5.0, student="test:1", statistics_weight=0.0, norm_weight=0.0,
        smoothness_weight=0.0, class_weight=0.0, **PLAIN,
    )  # fmt: skip
    method = DeepInversion(config).method(teacher)
    images = torch.randn(4, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    logits = teacher.module(images)
    found = method.objective(Seen(images, logits, None, (), None, {}))
    theirs = named.module((images * 0.25 + 0.5 - 0.3) / 0.2)
    expected = 5.0 * competition_loss(logits, theirs, temperature=3.0)
    torch.testing.assert_close(found, expected)


def test_a_student_of_another_task_is_refused(make_teacher: Callable[..., Teacher]) -> None:
    config = DeepInversionConfig(adaptive_weight=0.2, student="embedded:digits-resnet")
    with pytest.raises(UnsupportedModelError, match="one size and the same classes"):
        DeepInversion(config).synthesize(make_teacher(), 4, seed=0)


def test_two_students_are_one_too_many(make_teacher: Callable[..., Teacher]) -> None:
    config = DeepInversionConfig(adaptive_weight=0.2, student="embedded:digits-resnet")
    with pytest.raises(RecipeError, match="one student"):
        DeepInversion(config, student=make_teacher(seed=1).module).method(make_teacher())


def test_a_student_that_would_not_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="'adaptive_weight' is 0"):
        DeepInversionConfig(student="embedded:digits-resnet")


def test_without_classes_there_are_no_labels_and_without_statistics_no_batch_norm(
    small_teacher: Teacher,
) -> None:
    nameless = DeepInversionConfig(steps=2, class_weight=0.0, **PLAIN)  # type: ignore[arg-type]
    assert DeepInversion(nameless).synthesize(small_teacher, 4, seed=0).targets is None
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    module.requires_grad_(False).eval()
    bare = Teacher("test:bare", module, InputSpec((3, 5, 6), (0.5,) * 3, (0.25,) * 3))
    config = DeepInversionConfig(steps=2, statistics_weight=0.0, **PLAIN)  # type: ignore[arg-type]
    assert DeepInversion(config).synthesize(bare, 4, seed=0).targets is not None


def test_a_network_of_one_size_is_refused_with_the_setting_to_change() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(192, 3))
    module.requires_grad_(False).eval()
    fixed = Teacher("test:fixed", module, InputSpec((3, 8, 10), (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(UnsupportedModelError, match="low_resolution_share to 0"):
        DeepInversion(DeepInversionConfig.smallest()).synthesize(fixed, 4, seed=0)
    config = DeepInversionConfig(steps=2, low_resolution_share=0.0)
    assert len(DeepInversion(config).synthesize(fixed, 4, seed=0)) == 4


def test_nothing_to_learn_is_refused() -> None:
    nothing = {"statistics_weight": 0.0, "class_weight": 0.0}
    with pytest.raises(ValueError, match=r"'class_weight' and 'adaptive_weight' are all 0"):
        DeepInversionConfig(**nothing)  # type: ignore[arg-type]
    DeepInversionConfig(**nothing, adaptive_weight=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("low_resolution_share", 1.0), ("flip", 1.5), ("betas", (0.5, 1.0)),
     ("roll", -1), ("adaptive_weight", -0.1), ("temperature", 0.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        DeepInversionConfig(**{name: value})  # type: ignore[arg-type]

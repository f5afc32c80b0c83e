"""DSG: the slack at work, the sum, the two readings of its layer enhancement."""

import pytest
import torch
from torch import Tensor

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import BatchStart, Seen
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.sample_correlation import sample_correlation
from emptyset.losses.slack_alignment import slack_alignment, slack_of
from emptyset.losses.total_variation import total_variation
from emptyset.synthesizers.dsg import Dsg, DsgConfig
from emptyset.teachers.teacher import Teacher


def started(config: DsgConfig, teacher: Teacher, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = BatchStart(FrozenTeacher(teacher).look, (), generator, (5, *teacher.input.shape))
    return Dsg(config).context(start)


def test_the_context_is_made_of_gaussian_images(small_teacher: Teacher) -> None:
    context = started(DsgConfig(slack_images=6, slack_quantile=0.5), small_teacher)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, *small_teacher.input.shape, generator=generator)
    expected = slack_of(FrozenTeacher(small_teacher).look(noise).layers, 0.5)
    torch.testing.assert_close(context["slack"], expected)
    assert context["weights"].tolist() == [[2, 1], [1, 2], [2, 1], [1, 2], [2, 1]]
    legacy = started(DsgConfig(legacy=True), small_teacher)["weights"]
    assert legacy.tolist() == [[4, 1], [1, 4], [1, 1], [1, 1], [1, 1]]
    assert not bool(started(DsgConfig(slack_quantile=0.0), small_teacher)["slack"].any())


def test_the_objective_is_the_sum_of_all_terms(small_teacher: Teacher) -> None:
    config = DsgConfig(correlation_weight=3.0, class_weight=0.7, smoothness_weight=0.2,
                       norm_weight=0.4, spectrum_weight=0.5)  # fmt: skip
    context = started(config, small_teacher)
    images = torch.randn(5, *small_teacher.input.shape, generator=torch.Generator().manual_seed(4))
    looked = FrozenTeacher(small_teacher).look(images)
    targets = torch.tensor([0, 3, 1, 1, 2])
    seen = Seen(images, looked.logits, looked.features, looked.layers, targets, context)
    gaps = slack_alignment(looked.layers, context["slack"], per_image=True)
    expected = 0.0
    for image in range(5):
        own = image % 2
        expected += (gaps[image].sum() + gaps[image, own]).item() / 5
    correlation = sample_correlation(
        images, context["values"], context["vectors"], value_weight=0.5
    )
    expected += 3.0 / 2 * correlation.item()
    expected -= 0.7 * looked.logits.log_softmax(1)[range(5), targets].mean().item()
    expected += 0.2 * total_variation(images).item()
    expected += 0.4 * pixel_norm_per_image(images).mean().item()
    assert Dsg(config).objective(seen).item() == pytest.approx(expected, rel=1e-5)


def test_more_slack_leaves_images_further_from_the_stored_statistics(
    small_teacher: Teacher,
) -> None:
    def distance(quantile: float) -> float:
        config = DsgConfig(
            steps=60, learning_rate=0.1, slack_quantile=quantile, class_weight=0.0,
            smoothness_weight=0.0, norm_weight=0.0, roll=0, correlation_weight=0.0,
        )  # fmt: skip
        images = Dsg(config).synthesize(small_teacher, 8, seed=0)
        assert images.targets is None
        layers = FrozenTeacher(small_teacher).look(images.images).layers
        return slack_alignment(layers, torch.zeros(2, 2), per_image=True).sum(1).mean().item()

    assert distance(0.9) > 2 * distance(0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("slack_quantile", 1.2), ("statistics", "layer"), ("slack_images", 0),
     ("plateau_factor", 0.0), ("roll", -1), ("correlation_weight", -1.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        DsgConfig(**{name: value})  # type: ignore[arg-type]

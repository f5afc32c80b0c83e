"""Schedules of the presets are the published ones, and what contradicts itself is refused."""

from dataclasses import replace
from typing import Any

import pytest
from learning_beside_source import BITS, make
from small_teachers import two_convolutions

from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.training_parts import SMALLEST_CROP
from emptyset.teachers.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


def test_the_published_preset_is_intraqs_protocol_on_cifar() -> None:
    """IntraQ, arXiv:2111.09136, released code: 151 epochs of 200 updates, of which 4 set ranges."""
    course = DistillConfig(preset="published").course(BITS)
    assert (course.learned, course.steps, course.batch_size) == (False, 151 * 200, 256)
    assert (course.warm_up, course.range_steps) == (4 * 200, 4 * 200)
    assert [course.tracks(n) for n in (0, 799, 800, 30_199)] == [True, True, False, False]
    assert (course.ranges, course.ranges_from, course.early_ranges) == ("average", "images", False)
    # L = CE + 20 T² KL, summed over classes, averaged over images, at T = 20; nothing else.
    assert (course.cross_entropy, course.distillation, course.temperature) == (1.0, 20.0, 20.0)
    assert course.kd_reduction == "batch_mean"
    others = ("flatness", "logit_distance", "relations", "feature_attention", "perturbation")
    assert [getattr(course, name) for name in others] == [0.0] * 5
    assert (course.mixing, course.inundation, course.legacy) == ("none", "none", False)
    # SGD with Nesterov momentum; the rate falls to a tenth after 20, 40 and 60 epochs.
    assert (course.learning_rate, course.nesterov, course.weight_decay) == (1e-4, True, 1e-4)
    rates = [course.share_of_rate(n) for n in (3_999, 4_000, 7_999, 8_000, 11_999, 12_000, 30_199)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    # Crops of half of the area at least, mirrored half of the time.
    assert (course.augmentation, SMALLEST_CROP, course.flip) == ("crop", 0.5, 0.5)


def test_with_a_generators_ranges_the_warm_up_is_over_when_the_student_begins() -> None:
    config = DistillConfig(preset="published", steps=302)
    assert (config.course(BITS).first, config.course(BITS).warm_up) == (0, 8)
    asked = replace(config, ranges_from="gdfq").course(BITS)
    assert (asked.first, asked.warm_up, asked.steps) == (8, 8, 302)
    assert asked.share_of_rate(39) == 1
    assert asked.share_of_rate(40) == pytest.approx(0.1)


def test_presets_are_the_published_numbers(teacher: Teacher) -> None:
    gdfq = DistillConfig(preset="gdfq").course(BITS)
    assert (gdfq.steps, gdfq.warm_up, gdfq.range_steps) == (80_000, 800, 800)
    assert (gdfq.batch_size, gdfq.temperature, gdfq.weight_decay) == (200, 20.0, 1e-4)
    assert (gdfq.distillation, gdfq.kd_reduction, gdfq.cross_entropy) == (1.0, "mean", 1.0)
    rates = [gdfq.share_of_rate(n) for n in (0, 19_999, 20_000, 40_000, 60_000)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    large = DistillConfig(preset="gdfq", warm_up=0.125).course(BITS)
    assert (large.warm_up, large.range_steps) == (10_000, 800)
    assert [large.tracks(n) for n in (0, 9_199, 9_200, 9_999, 10_000)] == [0, 0, 1, 1, 0]
    released = DistillConfig(preset="gdfq", warm_up=0.125, legacy=True).course(BITS)
    assert [released.tracks(n) for n in (0, 799, 800, 9_999)] == [1, 1, 0, 0]
    zaq = DistillConfig(preset="zaq").course(BITS)
    assert (zaq.steps, zaq.warm_up, zaq.learning_rate, zaq.weight_decay) == (108_000, 0, 1e-3, 5e-4)
    moving = DistillConfig(preset="zaq", legacy=True).course(BITS)
    assert (moving.learning_rate, moving.moves_statistics) == (0.1, True)
    own = DistillConfig(preset="zaq", legacy=True, learning_rate=0.02).course(BITS)
    assert (own.learning_rate, gdfq.moves_statistics, zaq.moves_statistics) == (0.02, False, False)
    assert (zaq.batch_size, zaq.ranges) == (256, "extremes")
    assert (zaq.logit_distance, zaq.relations, zaq.distillation, zaq.nesterov) == (1, 1, 0, False)
    rates = [zaq.share_of_rate(n) for n in (35_999, 36_000, 72_000)]
    assert rates == pytest.approx([1, 0.1, 0.01])
    for name in ("adasg", "adadfq"):
        adaptive = DistillConfig(preset=name).course(BITS)
        assert (adaptive.steps, adaptive.warm_up, adaptive.flatness) == (80_000, 800, 1.0)
        assert (adaptive.distillation, adaptive.cross_entropy, adaptive.temperature) == (0, 0, 20)
        assert (adaptive.batch_size, adaptive.learning_rate) == (16, 1e-4)
    texq = DistillConfig(preset="texq").course(BITS)
    assert (texq.mixing, texq.cross_entropy, texq.kd_reduction) == ("mixup_images", 0, "batch_mean")
    own = DistillConfig(preset="gdfq", milestones=(0.5,)).course(BITS)
    assert [own.share_of_rate(n) for n in (39_999, 40_000)] == pytest.approx([1, 0.1])
    # A tenth of 1,000 is 100; the nearest binary fraction is a little more than a tenth.
    own = DistillConfig(preset="gdfq", steps=1000, warm_up=0.05, milestones=(0.1,)).course(BITS)
    assert [own.share_of_rate(n) for n in (99, 100)] == pytest.approx([1, 0.1])


def test_beside_a_source_the_learned_preset_waits_for_it(teacher: Teacher) -> None:
    alone = DistillConfig().course(BITS)
    beside = DistillConfig().course(BITS, make("gdfq", teacher))
    assert (alone.steps, alone.warm_up, alone.augmentation) == (500, 0, "shift")
    assert (beside.steps, beside.warm_up, beside.augmentation) == (2000, 500, "shift")
    published = DistillConfig(preset="published").course(BITS, make("gdfq", teacher))
    assert published.augmentation == "none"
    assert [beside.share_of_rate(n) for n in (500, 1250)] == pytest.approx([1, 0.5])
    asked = DistillConfig().course(BITS, make("zaq", teacher))
    assert asked.warm_up == 0


def test_a_source_that_asks_the_student_is_answered_from_the_first_lesson(
    teacher: Teacher,
) -> None:
    config = DistillConfig(preset="gdfq", cross_entropy=0.0, steps=400, warm_up=0.1)
    course = config.course(BITS, make("zaq", teacher))
    assert [n for n in range(400) if course.tracks(n)] == list(range(40))


def test_released_codes_tracked_the_first_four_epochs_whatever_the_warm_up(
    teacher: Teacher,
) -> None:
    config = DistillConfig(preset="adasg", steps=800, warm_up=0.125, legacy=True)
    course = config.course(BITS, make("adasg", teacher))
    assert (course.warm_up, [n for n in range(800) if course.tracks(n)]) == (100, list(range(8)))
    # The compounding average needs more where there are more.
    config = DistillConfig(preset="adasg", steps=800, warm_up=0.25, legacy=True)
    course = config.course(BITS, make("adasg", teacher))
    assert (course.warm_up, course.range_steps) == (200, 160)
    long = DistillConfig(preset="gdfq", steps=40_000, warm_up=0.125, legacy=True).course(BITS)
    assert (long.warm_up, long.range_steps) == (5_000, 400)


def test_a_short_schedule_shows_twenty_batches_to_ranges_where_its_warm_up_has_them() -> None:
    def ranges(steps: int, warm_up: float, **settings: Any) -> tuple[int, int]:
        course = DistillConfig(preset="gdfq", steps=steps, warm_up=warm_up, **settings).course(BITS)
        return course.warm_up, course.range_steps

    assert [ranges(400, 0.2), ranges(400, 0.02), ranges(400, 0.0)] == [(80, 20), (8, 8), (4, 4)]
    assert ranges(4_000, 0.2) == (800, 40)
    assert [ranges(n, 0.2, legacy=True)[1] for n in (400, 1_000, 40_000)] == [4, 160, 400]
    assert DistillConfig(preset="zaq", steps=400, warm_up=0.2).course(BITS).range_steps == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up": 1.0}, "warm_up is a share"),
        ({"milestones": (0.5, 1.5)}, "milestones are shares"),
        ({"keep": "first"}, "keep must be one of last, best"),
        ({"preset": "qimera"}, "one of learned, published, gdfq.* Got 'qimera'.* learn by gdfq"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"epoch": 0}, "epoch must be above 0"),
        ({"held_out": 1}, "held_out must be 0 or at least 2"),
        ({"relations": -1.0}, "relations must not be negative"),
        ({"distillation": 0.0}, "nothing to learn"),
        ({"preset": "adasg", "flatness": 0.0}, "nothing to learn"),
        ({"flatness": -1.0}, "flatness must not be negative"),
        ({"mixing": "blend"}, "mixing must be one of none, mixup, cutmix"),
        ({"preset": "gdfq", "mixing": "cutmix_images"}, "or mixing to 'cutmix'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)

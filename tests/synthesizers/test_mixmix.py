"""MixMix: what is pasted and labelled, and that every teacher is asked."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import Opinion, Seen
from emptyset.losses.batch_norm_statistics import deep_inversion_statistics
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.total_variation import total_variation
from emptyset.synthesizers.mixmix import MixMix, MixMixConfig, mixed_labels, pasted
from emptyset.teachers.teacher import InputSpec, Teacher

MakeTeacher = Callable[..., Teacher]


def drawn_by_hand() -> dict[str, torch.Tensor]:
    """Image 1 (all 1) pasted into the left half of image 0 (all 0), nothing into image 1."""
    mask = torch.zeros(2, 1, 2, 4)
    mask[0, :, :, :2] = 1.0
    return {
        "partner": torch.tensor([1, 0]),
        "paste_rows": torch.zeros(2, 2),
        "paste_columns": torch.zeros(2, 4),
        "paste_mask": mask,
    }


def test_a_pasted_half_gives_half_of_the_label() -> None:
    images = torch.zeros(2, 3, 2, 4)
    images[1] = 1.0
    mixed = pasted(images, drawn_by_hand())
    assert mixed[0, 2].tolist() == [[1, 1, 0, 0]] * 2
    assert torch.equal(mixed[1], images[1])
    labels = mixed_labels(torch.tensor([2, 0]), drawn_by_hand(), 4)
    assert labels.tolist() == [[0.5, 0, 0.5, 0], [1, 0, 0, 0]]


def test_the_objective_is_the_mean_over_teachers(make_teacher: MakeTeacher) -> None:
    images = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    views = [FrozenTeacher(make_teacher(seed=s)).look(images) for s in (0, 1)]
    mask = torch.zeros(2, 1, 8, 10)
    mask[0, :, :4, :5] = 1.0
    drawn = {"partner": torch.tensor([1, 0]), "paste_mask": mask}
    seen = Seen(
        images, views[0].logits, None, views[0].layers, torch.tensor([3, 1]), drawn,
        (Opinion(views[1].logits, views[1].layers),),
    )  # fmt: skip
    config = MixMixConfig(
        statistics_weight=0.3, first_layer_multiplier=4.0, class_weight=0.6,
        smoothness_weight=0.2, norm_weight=0.4,
    )  # fmt: skip
    expected = 0.2 * total_variation(images) + 0.4 * pixel_norm_per_image(images).mean()
    for view in views:
        log_p = view.logits.log_softmax(1)
        # A quarter of image 0 shows class 1; image 1 is whole.
        entropy = -(0.75 * log_p[0, 3] + 0.25 * log_p[0, 1] + log_p[1, 1]) / 2
        statistics = deep_inversion_statistics(view.layers, first_multiplier=4.0)
        expected = expected + (0.3 * statistics + 0.6 * entropy) / 2
    assert MixMix(config).objective(seen).item() == pytest.approx(expected.item(), rel=1e-5)


def test_images_are_stored_mixed_with_both_labels_or_plain(small_teacher: Teacher) -> None:
    plain = MixMixConfig(steps=2, roll=0, store="plain")
    targets = MixMix(plain).synthesize(small_teacher, 9, seed=0).targets
    assert targets is not None
    assert targets.shape == (9,)
    found = MixMix(MixMixConfig(steps=2, roll=0)).synthesize(small_teacher, 9, seed=0)
    assert found.targets is not None
    assert found.targets.shape == (9, 4)
    torch.testing.assert_close(found.targets.sum(1), torch.ones(9))
    shares = 1 - found.targets.max(1).values
    assert bool((shares < 0.51).all())
    assert float(shares.max()) > 0.1


def test_the_right_number_of_teachers_takes_part_in_a_step(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(seed=0)
    others = [make_teacher(seed=s) for s in (1, 2, 3)]
    counts, used = [], set()

    class Watched(MixMix):
        def objective(self, seen: Seen) -> torch.Tensor:
            counts.append(len(seen.others))
            used.update(name for name in seen.drawn if name.startswith("other."))
            return super().objective(seen)

    config = MixMixConfig(steps=12, warm_up=1, roll=1, teachers_per_step=3)
    images = Watched(config, teachers=others).synthesize(teacher, 4, seed=0)
    assert counts == [2] * 12
    assert used == {"other.0", "other.1", "other.2"}
    assert images.history[0]["settings"]["teachers"] == ["test:1", "test:2", "test:3"]


def test_what_two_teachers_agree_on_convinces_both(make_teacher: MakeTeacher) -> None:
    teacher, other = make_teacher(seed=0), make_teacher(seed=1)

    def confidence(others: list[Teacher]) -> float:
        config = MixMixConfig(steps=60, warm_up=2, roll=0, flip=0.0, store="plain")
        images = MixMix(config, teachers=others).synthesize(teacher, 16, seed=0)
        p = other.module(images.images).softmax(1)
        return float(p[range(16), images.targets].mean())

    assert confidence([other]) > confidence([]) + 0.1


def test_teachers_are_loaded_by_name_and_must_fit(small_teacher: Teacher) -> None:
    config = MixMixConfig(teachers=("embedded:digits-resnet",))
    with pytest.raises(UnsupportedModelError, match="one size and the same classes"):
        MixMix(config).synthesize(small_teacher, 4, seed=0)
    bare = Teacher("test:bare", nn.Flatten(), InputSpec((3, 8, 10), (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(
        UnsupportedModelError, match=r"test:bare \(Flatten\) has no BatchNorm layer"
    ):
        MixMix(MixMixConfig(), teachers=[bare]).synthesize(small_teacher, 4, seed=0)


def test_without_classes_images_are_mixed_all_the_same_and_other_tasks_may_help(
    make_teacher: MakeTeacher,
) -> None:
    config = MixMixConfig(steps=2, warm_up=1, roll=0, class_weight=0.0)
    teacher, other = make_teacher(classes=4), make_teacher(classes=7, seed=1)
    found = MixMix(config, teachers=[other]).synthesize(teacher, 5, seed=0)
    assert found.targets is None
    plain = MixMix(replace(config, store="plain"), teachers=[other])
    assert not torch.equal(found.images, plain.synthesize(teacher, 5, seed=0).images)
    with pytest.raises(UnsupportedModelError, match=r"4 classes, test:1 .* and 7 classes"):
        MixMix(replace(config, class_weight=1.0), teachers=[other]).method(teacher)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="'statistics_weight' and 'class_weight' are both 0"):
        MixMixConfig(statistics_weight=0.0, class_weight=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("store", "both"), ("smallest_box", 0.6), ("mix_probability", 1.5),
     ("teachers_per_step", 0), ("betas", (1.0, 0.9))],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        MixMixConfig(**{name: value})  # type: ignore[arg-type]

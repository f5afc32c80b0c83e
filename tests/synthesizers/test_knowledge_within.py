"""Knowledge Within: its sum, its schemes."""

import pytest
import torch
from torch import nn

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.method import Seen
from emptyset.losses.blur_distance import blur_distance
from emptyset.losses.gaussian_divergence import gaussian_divergence
from emptyset.losses.layer_statistics import layer_statistics
from emptyset.synthesizers.knowledge_within import KnowledgeWithin, KnowledgeWithinConfig
from emptyset.teachers.teacher import InputSpec, Teacher


def test_the_objective_is_the_weighted_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.double)
    logits = torch.randn(2, 6, generator=generator, dtype=torch.double)
    layer = layer_statistics(images, torch.zeros(3).double(), torch.ones(3).double())
    config = KnowledgeWithinConfig(statistics_weight=0.4, class_weight=3.0, smoothness_weight=0.2)
    seen = Seen(images, logits, None, (layer,), torch.tensor([5, 2]), {})
    expected = 0.4 * gaussian_divergence([layer]).item() + 0.2 * blur_distance(images).item()
    expected -= 3.0 * logits.log_softmax(1)[[0, 1], [5, 2]].mean().item()
    assert KnowledgeWithin(config).objective(seen).item() == pytest.approx(expected, rel=1e-9)


def test_the_images_show_their_class_and_cause_the_stored_gaussians(
    small_teacher: Teacher,
) -> None:
    config = KnowledgeWithinConfig(steps=150, learning_rate=0.1)
    images = KnowledgeWithin(config).synthesize(small_teacher, 24, seed=0)
    module = small_teacher.module
    shown = module(images.images).argmax(1)
    assert (shown == images.targets).double().mean().item() > 0.6
    features = module[0](images.images)  # type: ignore[index]
    start = module[0](torch.randn_like(images.images))  # type: ignore[index]
    mean, std = module[1].running_mean, module[1].running_var.sqrt()  # type: ignore[index]
    gaps = [
        float((x.mean((0, 2, 3)) - mean).norm() + (x.std((0, 2, 3)) - std).norm())
        for x in (features, start)
    ]
    assert gaps[0] < 0.5 * gaps[1]


def test_statistics_alone_need_no_classes_and_inception_alone_no_batch_norm(
    small_teacher: Teacher,
) -> None:
    statistics = KnowledgeWithinConfig(steps=2, class_weight=0.0)
    assert KnowledgeWithin(statistics).synthesize(small_teacher, 4, seed=0).targets is None
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    module.requires_grad_(False).eval()
    bare = Teacher("test:bare", module, InputSpec((3, 5, 6), (0.5,) * 3, (0.25,) * 3))
    inception = KnowledgeWithinConfig(steps=2, statistics_weight=0.0)
    assert KnowledgeWithin(inception).synthesize(bare, 4, seed=0).targets is not None
    with pytest.raises(UnsupportedModelError, match="no BatchNorm layer"):
        KnowledgeWithin(KnowledgeWithinConfig(steps=2)).synthesize(bare, 4, seed=0)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="both 0"):
        KnowledgeWithinConfig(statistics_weight=0.0, class_weight=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("plateau_factor", 1.0), ("blur", 0.0), ("least_variance", 0.0)],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        KnowledgeWithinConfig(**{name: value})  # type: ignore[arg-type]

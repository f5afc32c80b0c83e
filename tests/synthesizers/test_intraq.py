"""IntraQ: its confidences, its centres over batches, its margins at work."""

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.method import Seen
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.layer_statistics import layer_statistics
from emptyset.synthesizers.intraq import Intraq, IntraqConfig
from emptyset.teachers.teacher import InputSpec, Teacher


def test_all_confidences_are_soft_and_the_legacy_makes_half_of_them_one() -> None:
    def drawn(legacy: bool) -> Tensor:
        config = IntraqConfig(confidence=0.6, legacy=legacy)
        return Intraq(config).confidences(1001, torch.Generator().manual_seed(0))

    paper, released = drawn(False), drawn(True)
    assert 0.6 <= paper.min().item() < 0.61
    assert 0.99 < paper.max().item() < 1.0
    assert int((released == 1).sum()) == 501
    assert not bool((paper == 1).any())


def test_the_objective_is_the_sum_of_three(small_teacher: Teacher) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.double)
    layer = layer_statistics(features, torch.zeros(2).double(), torch.ones(2).double())
    drawn = {
        "confidence": torch.tensor([0.9, 0.7, 0.8], dtype=torch.double),
        "centres": torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.double),
        "known": torch.ones(2),
    }
    seen = Seen(
        images=features,
        logits=torch.zeros(3, 2, dtype=torch.double),
        features=torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]], dtype=torch.double),
        layers=(layer,),
        targets=torch.tensor([0, 0, 0]),
        drawn=drawn,
    )
    config = IntraqConfig(statistics_weight=0.5, inception_weight=2.0, margin_weight=3.0)
    # Probabilities are 1/2; cosine distances 0, 1 and 2 beside margins 0.05 and 0.8.
    inception = (0.4**2 + 0.2**2 + 0.3**2) / 3
    margin = (0.05 + 0.2 + 1.2) / 3
    expected = 0.5 * gdfq_statistics([layer]).item() + 2.0 * inception + 3.0 * margin
    assert Intraq(config).objective(seen).item() == pytest.approx(expected, rel=1e-9)


def test_centres_are_the_mean_features_of_all_batches_before(small_teacher: Teacher) -> None:
    centres: list[tuple[Tensor, Tensor]] = []

    class Watched(Intraq):
        def objective(self, seen: Seen) -> Tensor:
            centres.append((seen.drawn["centres"], seen.drawn["known"]))
            return super().objective(seen)

    config = IntraqConfig(steps=1, batch_size=5)
    made = Watched(config).synthesize(small_teacher, 15, seed=0)
    assert len(centres) == 3
    assert centres[0][1].tolist() == [0.0] * 4
    features = small_teacher.module[:8](made.images[:10])  # type: ignore[index]
    assert made.targets is not None
    for label in range(4):
        members = made.targets[:10] == label
        assert bool(members.any()) == bool(centres[2][1][label])
        if bool(members.any()):
            torch.testing.assert_close(centres[2][0][label], features[members].mean(0))


def test_a_lower_margin_keeps_images_from_the_centre_of_their_class(
    small_teacher: Teacher,
) -> None:
    def nearness(margin: float) -> float:
        config = IntraqConfig(
            steps=40, batch_size=8, learning_rate=0.1, lower_margin=margin, upper_margin=2.0,
            margin_weight=20.0, classes=(2,), crop_probability=0.0, inception_weight=0.0,
        )  # fmt: skip
        images = Intraq(config).synthesize(small_teacher, 16, seed=0).images
        features = small_teacher.module[:8](images)  # type: ignore[index]
        centre = features[:8].mean(0, keepdim=True)
        return float(nn.functional.cosine_similarity(features[8:], centre).mean())

    assert nearness(0.4) < nearness(0.0) - 0.05


def convolutional(last: nn.Module) -> Teacher:
    """``last`` has 3 outputs for the 5 channels of a pooled map."""
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(body, last, nn.Flatten()).requires_grad_(False).eval()
    for parameter in net.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return Teacher("test:conv", net, InputSpec((3, 5, 6), (0.5,) * 3, (0.25,) * 3))


def test_a_classifier_that_is_a_convolution_has_centres_too() -> None:
    given = convolutional(nn.Conv2d(5, 3, 1))
    centres: list[Tensor] = []

    class Watched(Intraq):
        def objective(self, seen: Seen) -> Tensor:
            centres.append(seen.drawn["centres"])
            return super().objective(seen)

    made = Watched(IntraqConfig(steps=1, batch_size=6)).synthesize(given, 12, seed=0)
    body: nn.Module = given.module[0]  # type: ignore[index,assignment]
    features = body(made.images[:6]).flatten(1)
    assert made.targets is not None
    for label in set(made.targets[:6].tolist()):
        members = made.targets[:6] == label
        torch.testing.assert_close(centres[1][label], features[members].mean(0))


def test_a_teacher_without_a_last_layer_needs_the_margin_off() -> None:
    given = convolutional(nn.Conv2d(5, 3, 3, padding=1))
    with pytest.raises(UnsupportedModelError, match="margin_weight to 0"):
        Intraq(IntraqConfig(steps=2)).synthesize(given, 4, seed=0)
    config = IntraqConfig(steps=2, margin_weight=0.0)
    assert len(Intraq(config).synthesize(given, 4, seed=0)) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("smallest_crop", 0.0), ("smallest_crop", 1.1), ("confidence", 1.5),
     ("lower_margin", 0.9), ("crop_probability", 2.0), ("margin_weight", -1.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        IntraqConfig(**{name: value})  # type: ignore[arg-type]

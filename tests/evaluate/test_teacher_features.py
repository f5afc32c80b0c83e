"""Features: the input of the layer that decides, whatever kind of layer it is."""

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.evaluate.teacher_features import TeacherFeatures
from emptyset.teachers.teacher import InputSpec, Teacher

SPEC = InputSpec((3, 4, 6), (0.5,) * 3, (0.25,) * 3)


def teacher_of(module: nn.Module) -> Teacher:
    return Teacher("test", module.requires_grad_(False).eval(), SPEC)


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 4, 6, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """Logits are the mean over the places of a linear layer on every place."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.head = nn.Linear(3, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.early(x.permute(0, 2, 3, 1))
        logits: Tensor = self.head(hidden.flatten(1, 2)).mean(dim=1)
        return logits


def test_the_input_of_the_last_linear_layer() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 5))
    found = TeacherFeatures(teacher_of(net), batch_size=2)
    seen = found.of(images())
    assert found.kind == "penultimate"
    # Both layers have as many outputs as there are classes; the one called last decides.
    torch.testing.assert_close(seen.features, net[:3](images()))
    torch.testing.assert_close(seen.logits, net(images()))
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_maps_before_a_convolution_are_averaged_over_their_places() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    seen = TeacherFeatures(teacher_of(net)).of(images())
    torch.testing.assert_close(seen.features, net[0](images()).mean((2, 3)))


def test_tokens_before_a_linear_layer_are_averaged() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Tokens()
    seen = TeacherFeatures(teacher_of(net)).of(images())
    expected = net.early(images().permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(seen.features, expected)


def test_logits_stand_for_the_features_of_a_network_without_such_a_layer() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = TeacherFeatures(teacher_of(net))
    assert found.kind == "logits"
    torch.testing.assert_close(found.of(images()).features, net(images()))


def test_a_network_without_classes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="reading features"):
        TeacherFeatures(teacher_of(nn.Conv2d(3, 4, 3)))

"""The layer that decides: found by the order of the calls, whatever kind of layer it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from emptyset.teachers import InputSpec, Teacher
from emptyset.teachers.last_layer import feature_vectors, last_layer

CLASSES, SHAPE = 5, (3, 8, 6)
EXAMPLE = torch.zeros(2, *SHAPE)


class InOrder(nn.Module):
    """Parts registered in the order given, and called in that of ``calls``."""

    def __init__(self, calls: str, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.calls = calls.split()

    def forward(self, x: Tensor) -> Tensor:
        for name in self.calls:
            x = self.get_submodule(name)(x)
        return x


def pool() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_order_of_the_calls_decides_not_that_of_the_registration() -> None:
    net = InOrder(
        "pool body head", head=nn.Linear(CLASSES, CLASSES), body=nn.Linear(3, CLASSES), pool=pool()
    )
    assert list(dict(net.named_children())) == ["head", "body", "pool"]
    assert last_layer(net, EXAMPLE) == "head"


def test_a_layer_that_is_never_called_is_none() -> None:
    unused = nn.Linear(3, CLASSES)
    net = InOrder("pool head", pool=pool(), head=nn.Linear(3, CLASSES), auxiliary=unused)
    assert last_layer(net, EXAMPLE) == "head"


@pytest.mark.parametrize(
    "after",
    [nn.Identity, nn.ReLU, lambda: nn.AdaptiveAvgPool2d(1)],
    ids=["alone", "activated", "pooled"],
)
def test_a_convolution_of_one_pixel_is_a_last_layer_too(after: Callable[[], nn.Module]) -> None:
    parts = {"body": nn.Conv2d(3, 7, 3), "output": nn.Conv2d(7, CLASSES, 1), "after": after()}
    net = InOrder("body output after pool", **parts, pool=pool())
    assert last_layer(net, EXAMPLE) == "output"


@pytest.mark.parametrize(
    "last",
    [
        lambda: nn.Conv2d(CLASSES, CLASSES, 3),
        lambda: nn.Conv2d(CLASSES, CLASSES, 1, groups=CLASSES),
        lambda: nn.Sequential(nn.Conv2d(CLASSES, 2 * CLASSES, 1), nn.GLU(dim=1)),
    ],
    ids=["sees neighbours", "one class each", "twice the classes"],
)
def test_a_layer_before_another_one_does_not_decide(last: Callable[[], nn.Module]) -> None:
    """An inner layer with as many channels as classes is not taken in the last one's place."""
    net = InOrder("inner last pool", inner=nn.Conv2d(3, CLASSES, 1), last=last(), pool=pool())
    assert net(EXAMPLE).shape == (2, CLASSES)
    assert last_layer(net, EXAMPLE) is None


def test_maps_are_no_logits() -> None:
    assert last_layer(nn.Conv2d(3, CLASSES, 1), EXAMPLE) is None
    assert last_layer(nn.Flatten(), EXAMPLE) is None


def test_no_hook_stays_behind_even_when_the_network_raises() -> None:
    net = InOrder("pool head", pool=pool(), head=nn.Linear(4, CLASSES))
    with pytest.raises(RuntimeError):
        last_layer(net, EXAMPLE)
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_maps_and_tokens_are_averaged_over_their_places() -> None:
    given = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    flat = torch.stack([given[:, :, i, j] for i in range(3) for j in range(4)]).mean(0)
    torch.testing.assert_close(feature_vectors(given, nn.Conv2d(7, CLASSES, 1)), flat)
    tokens = given.permute(0, 2, 3, 1)
    torch.testing.assert_close(feature_vectors(tokens, nn.Linear(7, CLASSES)), flat)
    assert feature_vectors(flat, nn.Linear(7, CLASSES)) is flat


def test_the_classifiers_weight_has_a_row_per_class() -> None:
    output = nn.Conv2d(7, CLASSES, 1)
    net = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), pool()[0], output, nn.Flatten())
    teacher = Teacher("test", net.train(), InputSpec(SHAPE, (0.5,) * 3, (0.25,) * 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    weight = teacher.classifier_weight()
    assert weight is not None
    assert torch.equal(weight, output.weight[:, :, 0, 0])
    # Asked in training mode, too, a teacher keeps its statistics.
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


def test_the_mobilenet_of_pytorchcv_ends_with_a_convolution() -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = provider.get_model("mobilenetv2_wd4", num_classes=CLASSES).eval()
    assert last_layer(net, torch.zeros(1, 3, 224, 224)) == "output"
    assert isinstance(net.output, nn.Conv2d)

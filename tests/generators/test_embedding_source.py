"""Which layer's rows stand for the classes: the one that gives the logits, or none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.generators.embedding_source import class_centres, required_centres
from emptyset.teachers.teacher import InputSpec, Teacher

CLASSES, SHAPE = 5, (3, 8, 6)


def teacher_of(module: nn.Module) -> Teacher:
    module.requires_grad_(False).eval()
    return Teacher("test", module, InputSpec(SHAPE, (0.5,) * 3, (0.25,) * 3))


class TwoParts(nn.Module):
    """A body and a head; which was registered first says nothing of which is called first."""

    def __init__(self, body: nn.Module, head: nn.Module, *, head_first: bool = False) -> None:
        super().__init__()
        order = [("head", head), ("body", body)] if head_first else [("body", body), ("head", head)]
        for name, part in order:
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def pooled(*after: nn.Module) -> nn.Module:
    return nn.Sequential(*after, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_of_two_layers_of_as_many_outputs_the_one_called_last_gives_the_rows() -> None:
    """`fc` is registered before an inner linear layer that is C wide."""
    inner, fc = nn.Linear(3, CLASSES), nn.Linear(CLASSES, CLASSES)
    net = TwoParts(pooled().append(inner), fc, head_first=True)
    assert list(net.modules())[1] is fc
    assert torch.equal(class_centres(teacher_of(net), CLASSES), fc.weight)


def test_a_head_of_larger_convolutions_has_no_rows_whatever_is_behind_it() -> None:
    """An inner 1x1 convolution has C channels, too; its rows are no class centres."""
    inner, head = nn.Conv2d(3, CLASSES, 1), nn.Conv2d(CLASSES, CLASSES, 3)
    teacher = teacher_of(TwoParts(inner, pooled(head)))
    assert class_centres(teacher, CLASSES) is None
    with pytest.raises(UnsupportedModelError, match="Set embeddings to random"):
        required_centres(teacher, CLASSES, None, "qimera")


@pytest.mark.parametrize(
    ("after", "taken"),
    [
        (lambda: nn.Flatten(), True),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), True),
        (lambda: nn.Sequential(nn.Flatten(), nn.Softplus()), False),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(CLASSES)), False),
        # Writes over the answer that a hook would have kept.
        (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), False),
    ],
)
def test_what_comes_after_the_layer_must_leave_its_answer(
    after: Callable[[], nn.Module], taken: bool
) -> None:
    conv = nn.Conv2d(7, CLASSES, 1)
    nn.init.constant_(conv.bias[:2], -9.0)  # never positive
    following = after()
    for norm in (m for m in following.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.fill_(0.5)
    body = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1))
    found = class_centres(teacher_of(nn.Sequential(body, conv, following)), CLASSES)
    assert (found is not None) is taken
    if found is not None:
        assert torch.equal(found, conv.weight[:, :, 0, 0])


def test_averaging_the_answers_of_a_pointwise_head_is_the_head_of_the_average() -> None:
    conv = nn.Conv2d(7, CLASSES, 1)
    net = pooled(nn.Conv2d(3, 7, 3), conv)
    assert torch.equal(class_centres(teacher_of(net), CLASSES), conv.weight.flatten(1))
    tokens = nn.Linear(3, CLASSES)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = tokens

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(2).transpose(1, 2)).mean(1)

    assert torch.equal(class_centres(teacher_of(Tokens()), CLASSES), tokens.weight)


def test_zeros_would_not_tell_the_layers_of_a_network_without_biases_apart() -> None:
    net = pooled(nn.Conv2d(3, CLASSES, 1, bias=False), nn.Conv2d(CLASSES, CLASSES, 3, bias=False))
    assert not net(torch.zeros(1, *SHAPE)).any()
    assert class_centres(teacher_of(net), CLASSES) is None


def test_a_layer_that_is_never_called_is_not_taken() -> None:
    net = pooled(nn.Conv2d(3, CLASSES, 3))
    net.unused = nn.Linear(4, CLASSES)
    net.forward = lambda x: net[2](net[1](net[0](x)))
    assert class_centres(teacher_of(net), CLASSES) is None


def test_another_number_of_classes_has_no_rows() -> None:
    net = pooled().append(nn.Linear(3, CLASSES)).append(nn.Linear(CLASSES, 4))
    teacher = teacher_of(net)
    assert class_centres(teacher, CLASSES) is None
    assert class_centres(teacher, 9) is None
    assert class_centres(teacher, 4).shape == (4, CLASSES)


def test_the_teacher_stays_as_it_is() -> None:
    net = pooled(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)).append(nn.Linear(7, CLASSES))
    teacher = teacher_of(net)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    class_centres(teacher, CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("width", [6, 8])
def test_a_width_that_the_classifier_does_not_have_is_refused(width: int) -> None:
    net = pooled(nn.Conv2d(3, 7, 3)).append(nn.Linear(7, CLASSES))
    with pytest.raises(UnsupportedModelError) as error:
        required_centres(teacher_of(net), CLASSES, width, "qimera")
    said = str(error.value)
    assert f"length {width} are asked for" in said
    assert "rows of 7" in said
    assert "embedding_width" in said
    assert "embeddings to random" in said
    assert required_centres(teacher_of(net), CLASSES, 7, "qimera").shape == (CLASSES, 7)

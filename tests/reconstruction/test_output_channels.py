"""Where channels end: every channel of the last layer gets a number, and the output shows it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.blocks import find_blocks
from emptyset.graph.capture import capture
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SILENT
from emptyset.reconstruction.chain import reconstruct
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.image_axis import stretch
from emptyset.reconstruction.output_channels import channel_axis_of
from emptyset.teachers.teacher import Teacher

SHAPE = (3, 8, 10)


class Layers(nn.Module):
    """Some layers, and what a test does with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(outputs: int = 3, size: int = 1) -> nn.Conv2d:
    return nn.Conv2d(3, outputs, size, padding=size // 2)


def next_block(net: Any, x: Tensor) -> Tensor:
    """ConvNeXt's: linears on channels that were moved behind, and moved back."""
    y = net.depthwise(x).permute(0, 2, 3, 1)
    y = net.second(F.gelu(net.first(F.layer_norm(y, (3,)))))
    return x + y.permute(0, 3, 1, 2)


def excited(net: Any, x: Tensor) -> Tensor:
    """Channels of a convolution times factors from linears."""
    y = net.conv(x)
    factors = torch.sigmoid(net.second(F.relu(net.first(y.mean((2, 3))))))
    return F.relu(x + y * factors[:, :, None, None])


def windows(net: Any, x: Tensor) -> Tensor:
    """Halves of an image as images of their own, then whole images again."""
    count = x.shape[0]
    x = x.permute(0, 2, 3, 1).reshape(count * 2, 40, 3)
    return net.linear(x).reshape(count, 8, 10, 7)


def heads(net: Any, x: Tensor) -> Tensor:
    """Channels in two groups of three, which are swapped with the tokens and back."""
    x = net.linear(x.flatten(2).transpose(1, 2))
    x = x.unflatten(2, (2, 3)).transpose(1, 2)
    return torch.tanh(x).transpose(1, 2).flatten(2)


def attended(net: Any, x: Tensor) -> Tensor:
    """The mean of tokens, each weighed by one number that a layer gives."""
    x = net.first(x.flatten(2).transpose(1, 2))
    return F.softmax(net.second(x), 1).transpose(1, 2) @ x


CASES: dict[str, Callable[[], Layers]] = {
    "convolution": lambda: Layers(lambda n, x: F.relu(n.a(x)), a=conv(7)),
    "transposed convolution": lambda: Layers(lambda n, x: n.a(x), a=nn.ConvTranspose2d(3, 7, 2)),
    "linear": lambda: Layers(lambda n, x: n.a(x), a=nn.Linear(10, 7)),
    "pooled": lambda: Layers(lambda n, x: F.adaptive_avg_pool2d(n.a(x), 1).flatten(1), a=conv(7)),
    "ConvNeXt": lambda: Layers(
        next_block, depthwise=nn.Conv2d(3, 3, 3, padding=1, groups=3), first=nn.Linear(3, 7),
        second=nn.Linear(7, 3),
    ),
    "squeeze and excite": lambda: Layers(
        excited, conv=conv(size=3), first=nn.Linear(3, 2), second=nn.Linear(2, 3)
    ),
    "patches": lambda: Layers(lambda n, x: n.a(x).flatten(2).transpose(1, 2), a=conv(7)),
    "patches and norm": lambda: Layers(
        lambda n, x: F.layer_norm(n.a(x).movedim(1, -1).contiguous(), (7,)), a=conv(7)
    ),
    "windows": lambda: Layers(windows, linear=nn.Linear(3, 7)),
    "heads": lambda: Layers(heads, linear=nn.Linear(3, 6)),
    "attention": lambda: Layers(attended, first=nn.Linear(3, 7), second=nn.Linear(7, 1)),
    "token of a sequence": lambda: Layers(
        lambda n, x: n.a(x.flatten(2).transpose(1, 2))[:, 4], a=nn.Linear(3, 7)
    ),
    "mean of a sequence": lambda: Layers(
        lambda n, x: n.a(x.permute(2, 3, 0, 1)).mean((0, 1)), a=nn.Linear(3, 7)
    ),
    "times its greatest value": lambda: Layers(
        lambda n, x: (1 + n.a(x)) * (1 + x.sum() + x.amax()), a=conv(7)
    ),
    "tokens mixed": lambda: Layers(
        lambda n, x: x.flatten(2) + n.b(F.relu(n.a(x.flatten(2)))),
        a=nn.Linear(80, 7), b=nn.Linear(7, 80),
    ),
    "branches": lambda: Layers(
        lambda n, x: torch.cat([n.a(x), F.max_pool2d(n.b(x), 3, 1, 1)], 1), a=conv(2), b=conv(5)
    ),
    "shuffled": lambda: Layers(
        lambda n, x: n.a(x).view(-1, 2, 3, 8, 10).transpose(1, 2).reshape(-1, 6, 8, 10), a=conv(6)
    ),
    "swapped": lambda: Layers(lambda n, x: n.a(x).swapaxes(1, 3), a=conv(7)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_axis_is_the_one_along_which_channels_differ(case: str) -> None:
    net = CASES[case]().eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        numbers = torch.arange(1.0, len(parameter) + 1) / len(parameter)
        parameter.copy_(numbers if name.endswith("bias") else torch.zeros_like(parameter))
    # Of a black image every layer gives its numbers, the same in every place.
    out = net(torch.zeros(4, *SHAPE))
    differing = [a for a in range(out.dim()) if (out.amax(a) - out.amin(a)).max() > 1e-4]
    program = capture(net, torch.zeros(2, *SHAPE))
    (given,) = program.graph.output_node().args[0]
    assert [channel_axis_of(stretch(program, None, given))] == differing


def test_by_hand_the_error_of_a_block_is_a_sum_over_its_channels(
    teacher_of: Callable[..., Teacher], student_of: Callable[..., Student], images: ImageSet
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.conv = CASES["ConvNeXt"](), nn.Conv2d(3, 7, 1)
            self.head = nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(self.block(x))).mean((2, 3)))

    student = student_of(teacher_of(Net()), "w3a4")
    course = Course(
        name="test", config=ReconstructionConfig(batch_size=6), steps=0, activations=False
    )
    told = reconstruct(student.copy(), images, course, seed=3, monitor=SILENT)
    assert told[0].name == "block.depthwise .. block.second"
    for quantizer in student.quantizers.values():
        quantizer.enabled = quantizer.axis is not None
    with torch.no_grad():
        gap = find_blocks(student)[0](images.images) - student.teacher.module.block(images.images)
    assert gap.shape == (22, 3, 8, 10)
    assert told[0].start == pytest.approx(gap.square().sum(1).mean().item(), rel=1e-5)

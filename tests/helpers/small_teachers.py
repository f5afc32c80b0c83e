"""A network of two convolutions, as a frozen teacher whose weights are the same in every run."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights


class TwoConvolutions(nn.Module):
    """Convolution, BatchNorm and ReLU twice, the average, a linear."""

    def __init__(self, channels: tuple[int, int], classes: int, *, bias: bool) -> None:
        super().__init__()
        first, second = channels
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, padding=1, bias=bias), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, 2, bias=bias), nn.BatchNorm2d(second)
        self.linear = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def two_convolutions(
    channels: tuple[int, int] = (6, 7),
    *,
    classes: int = 5,
    bias: bool = False,
    scale: float = 0.4,
    means: float = 0.3,
    equal_norms: bool = True,
) -> Teacher:
    """All numbers from one seed.

    Args:
        channels: Of the two convolutions.
        classes: Outputs.
        bias: Whether the convolutions have one.
        scale: Standard deviation of the parameters.
        means: Standard deviation of the running means of BatchNorm; 0: they stay 0.
        equal_norms: Whether the scales of BatchNorm are 1, and not drawn as all parameters.
    """
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        net = TwoConvolutions(channels, classes, bias=bias)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=random))
        for norm in (net.bn1, net.bn2):
            if equal_norms:
                norm.weight.fill_(1.0)
            if means:
                norm.running_mean.copy_(means * torch.randn(norm.num_features, generator=random))
    net.requires_grad_(False).eval()
    spec = InputSpec((3, 8, 12), (0.5, 0.4, 0.45), (0.25, 0.2, 0.3))
    return Teacher("test", net, spec, weights_hash=hash_of_weights(net))

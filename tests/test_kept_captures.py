"""What the suite keeps between tests is told apart by everything that a graph depends on."""

import copy

import torch
from kept_captures import kept, key_of
from torch import Tensor, nn


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


def test_equal_networks_share_a_key_and_others_do_not() -> None:
    module, example = Scaled().eval(), torch.zeros(2, 3)
    key = key_of(module, example)
    assert key is not None
    assert key_of(copy.deepcopy(module), example.clone()) == key
    weight, setting, mode, of_another_size = (copy.deepcopy(module) for _ in range(4))
    with torch.no_grad():
        weight.layer.weight[0, 1] += 1e-3
    setting.scale = 3.0
    mode.train()
    changed = [key_of(one, example) for one in (weight, setting, mode)]
    changed += [key_of(of_another_size, torch.zeros(4, 3)), key_of(nn.Linear(3, 2), example)]
    assert len({key, *changed}) == 6


def test_a_class_inside_a_function_has_no_key() -> None:
    class Local(Scaled):
        pass

    assert key_of(Local(), torch.zeros(2, 3)) is None


def test_what_is_given_is_a_copy() -> None:
    def capture(module: nn.Module, example: Tensor) -> torch.fx.GraphModule:
        return torch.fx.symbolic_trace(module)

    module, example = Scaled(), torch.ones(2, 3)
    once = kept(capture)
    expected = module(example)
    first = once(module, example)
    with torch.no_grad():
        first.layer.weight.zero_()
    torch.testing.assert_close(once(module, example)(example), expected)

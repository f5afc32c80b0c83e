"""A student without quantization is compared with its network before anyone gets it."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from emptyset.errors import CaptureError, UnsupportedModelError
from emptyset.graph import student as student_module
from emptyset.graph.batch_norm import fold
from emptyset.graph.capture import capture
from emptyset.graph.float_check import require_teachers_logits
from emptyset.graph.student import prepare


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(240, 4)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
def test_a_wrong_rewriting_is_refused_and_says_whose_fault_it_is(
    plan: str, teacher_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(program: fx.GraphModule) -> int:
        found = fold(program)
        with torch.no_grad():
            program.get_submodule("0").bias[2] += 0.1
        return found

    monkeypatch.setattr(student_module, "fold", wrong)
    with pytest.raises(CaptureError, match=r"test: .*differ by \d\.\de-\d\d.*defect of emptyset"):
        prepare(teacher_of(network()), "w4a4", plan=plan)


@pytest.mark.parametrize(("off", "refused"), [(0.5e-4, False), (2e-4, True)])
def test_one_part_in_ten_thousand_of_the_largest_logit_is_allowed(
    off: float, refused: bool, teacher_of
) -> None:
    teacher = teacher_of(network())
    program = capture(teacher.module, teacher.example())
    images = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    largest = teacher.module(images).abs().max()
    with torch.no_grad():
        program.get_submodule("4").bias[1] += off * largest
    if refused:
        with pytest.raises(CaptureError, match=r"differ by 2\.0e-04 of the largest"):
            require_teachers_logits(program, teacher)
    else:
        require_teachers_logits(program, teacher)


def test_logits_that_are_no_numbers_are_refused(teacher_of) -> None:
    teacher = teacher_of(network())
    program = capture(teacher.module, teacher.example())
    with torch.no_grad():
        program.get_submodule("4").bias[1] = torch.nan
    with pytest.raises(CaptureError, match="differ by nan"):
        require_teachers_logits(program, teacher)


class Drawing(nn.Module):
    """Draws numbers in every call, as Monte Carlo dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(240, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) * (1 + torch.rand(1))


def test_a_network_that_draws_numbers_is_given_the_same_ones(teacher_of) -> None:
    teacher, before = teacher_of(Drawing()), torch.random.get_rng_state()
    require_teachers_logits(capture(teacher.module, teacher.example()), teacher)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_teacher_stays_as_it_was(teacher_of) -> None:
    teacher = teacher_of(network())
    teacher.module.train()
    before = copy.deepcopy(teacher.module.state_dict())
    prepare(teacher, "w8a8")
    assert all(module.training for module in teacher.module.modules())
    for name, value in teacher.module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_a_network_that_gives_more_than_logits_is_refused_in_words(kind: type, teacher_of) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> object:
            return kind({"logits": self.inner(x), "image": x}.items())

    with pytest.raises(UnsupportedModelError, match=rf"one tensor \(N, K\), got {kind.__name__}"):
        prepare(teacher_of(Several()), "w8a8")

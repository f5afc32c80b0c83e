"""AdaSG's lesson against a plain loop that forwards everything twice, as the released one does."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.generators.generator_source import GeneratorSource
from emptyset.generators.step import LessonExecution
from emptyset.images.image_source import Disagreement
from emptyset.sources.adasg import AdaSg, AdaSgConfig
from emptyset.teachers.teacher import InputSpec, Teacher

CLASSES, BATCH = 5, 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def teacher() -> Teacher:
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=random))
        net.norm.running_mean.copy_(0.3 * torch.randn(6, generator=random))
    net.requires_grad_(False).eval()
    return Teacher("test", net, InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3))


def student_of(teacher: Teacher) -> nn.Module:
    random = torch.Generator().manual_seed(1)
    net = copy.deepcopy(teacher.module)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return net.requires_grad_(True)


def made(teacher: Teacher, **settings: Any) -> GeneratorSource:
    config = AdaSgConfig(latent=6, widths=(5, 4), **settings)
    source = AdaSg(config).source(teacher, seed=3)
    # Whatever this machine's hardware would choose: comparisons are of float32.
    source._step._take(LessonExecution(False, torch.float32))
    return source


class PlainLoop:
    """The published loss by torch's own parts; the generator's gradient in one go."""

    def __init__(self, source: GeneratorSource, teacher: Teacher, config: AdaSgConfig) -> None:
        self.net, self.config = copy.deepcopy(source.generator), config
        self.teacher = copy.deepcopy(teacher.module)
        self.adam = torch.optim.Adam(self.net.parameters(), lr=1e-3, betas=(0.5, 0.999))
        self.teacher.norm.register_forward_hook(lambda _m, given, _o: self._hear(given[0]))

    def _hear(self, x: Tensor) -> None:
        norm = self.teacher.norm
        self.gap = F.mse_loss(x.mean((0, 2, 3)), norm.running_mean)
        self.gap = self.gap + F.mse_loss(x.var((0, 2, 3), unbiased=False), norm.running_var)

    def loss(self, x: Tensor, targets: Tensor, student: nn.Module) -> Tensor:
        config, theirs, ours = self.config, self.teacher(x), student(x)
        p = F.softmax(theirs - ours, dim=1)
        entropy = -(p * p.log()).sum(dim=1)
        least = entropy.min() if config.legacy else entropy.min().detach()
        share = (entropy - least) / (torch.log(torch.tensor(float(CLASSES))) - least)
        margin = F.relu(config.entropy_low - share).mean()
        margin = margin + F.relu(share - config.entropy_high).mean()
        picked = targets[:, None]
        difference = -F.log_softmax(theirs - ours, 1).gather(1, picked).mean()
        agreement = -F.log_softmax(theirs + ours, 1).gather(1, picked).mean()
        labels = config.difference_weight * difference + config.sum_weight * agreement
        return margin + labels + config.statistics_weight * self.gap

    def lesson(self, drawn: dict[str, Tensor], targets: Tensor, student: nn.Module) -> Tensor:
        images = self.net(drawn)
        self.adam.zero_grad()
        loss = self.loss(images, targets, student)
        loss.backward()
        self.adam.step()
        student.zero_grad()
        return images.detach()


@pytest.mark.parametrize(
    "settings",
    [{}, {"legacy": True}, {"entropy_low": 0.5, "entropy_high": 0.5, "difference_weight": 0.4}],
)
def test_lessons_are_those_of_the_published_loop(
    settings: dict[str, Any], teacher: Teacher
) -> None:
    source, student = made(teacher, **settings), student_of(teacher)
    plain = PlainLoop(source, teacher, AdaSgConfig(latent=6, widths=(5, 4), **settings))
    drawn: list[dict[str, Tensor]] = []
    whole = source.generator.draw
    source.generator.draw = lambda *a: drawn.append(whole(*a)) or drawn[-1]  # type: ignore[func-returns-value]
    for _ in range(4):
        lesson = source.next_batch(BATCH)
        assert (lesson.source_learns, lesson.student_learns) == (True, True)
        assert lesson.targets is not None
        images = plain.lesson(drawn[-1], lesson.targets, student)
        torch.testing.assert_close(lesson.images.detach(), images, atol=2e-4, rtol=1e-3)
        assert lesson.teacher_logits is not None
        source.learn_from(Disagreement(lesson, lesson.teacher_logits, student(lesson.images)))
        assert all(p.grad is None for p in student.parameters())
    ours = dict(source.generator.named_parameters())
    for key, value in plain.net.named_parameters():
        # A bias before BatchNorm has no gradient but rounding's, which Adam makes large.
        if not key.endswith("bias"):
            torch.testing.assert_close(ours[key], value, atol=5e-4, rtol=2e-3, msg=key)


def test_the_students_graph_is_still_there_after_the_generator_learnt(teacher: Teacher) -> None:
    source, student = made(teacher), student_of(teacher)
    lesson = source.next_batch(BATCH)
    said = student(lesson.images)
    assert lesson.teacher_logits is not None
    source.learn_from(Disagreement(lesson, lesson.teacher_logits, said))
    gradients = torch.autograd.grad(said.sum(), list(student.parameters()))
    expected = torch.autograd.grad(
        student(lesson.images.detach()).sum(), list(student.parameters())
    )
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_term_of_weight_zero_is_left_out(teacher: Teacher) -> None:
    every = ["margin", "disagreement samples", "agreement samples", "batch norm statistics"]
    assert [term.name for term in made(teacher).method.terms] == every
    names = {
        "margin": "margin_weight",
        "disagreement samples": "difference_weight",
        "agreement samples": "sum_weight",
        "batch norm statistics": "statistics_weight",
    }
    for name, setting in names.items():
        left = made(teacher, **{setting: 0.0}).method.terms
        assert [term.name for term in left] == [other for other in every if other != name]
    without_student = {"margin_weight": 0.0, "difference_weight": 0.0, "sum_weight": 0.0}
    assert not made(teacher, **without_student).needs_student


def test_a_teacher_without_batch_norm_is_refused_unless_statistics_are_off() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(240, 3))
    plain = Teacher(
        "test", net.requires_grad_(False).eval(), InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3)
    )
    with pytest.raises(UnsupportedModelError, match="Set statistics_weight to 0"):
        made(plain)
    assert made(plain, statistics_weight=0.0).next_batch(BATCH).source_learns


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_low": 0.9}, "'entropy_low' must not exceed 'entropy_high'"),
        ({"entropy_high": 1.1}, "'entropy_high' must lie in 0..1"),
        ({"margin_weight": -1.0}, "'margin_weight' must not be negative"),
        ({"difference_weight": float("nan")}, "'difference_weight' must not be negative"),
        ({"widths": (0, 4)}, "'widths' must be positive"),
        (
            {
                "margin_weight": 0.0,
                "sum_weight": 0.0,
                "difference_weight": 0.0,
                "statistics_weight": 0.0,
            },
            "are all 0: nothing shapes the images",
        ),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaSgConfig(**settings)

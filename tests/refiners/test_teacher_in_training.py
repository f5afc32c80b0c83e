"""The teacher while its student is trained: in eval mode, untouched, however its images lie."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learning_beside_source import BITS, make, taught
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.refiners.training_parts import OwnNetwork, pair_of
from emptyset.teachers.teacher import InputSpec, Teacher

SHAPE = (3, 8, 10)


class Net(nn.Module):
    """A BatchNorm, a dropout, and maps that are read as rows: by a view, or another way."""

    def __init__(self, *, view: bool = False, dropout: float = 0.4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(6 * 4 * 5, 7)
        self.view, self.layouts = view, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.layouts.append(x.is_contiguous())
        x = F.max_pool2d(self.dropout(F.relu(self.norm(self.conv(x)))), 2)
        return self.linear(x.view(len(x), -1) if self.view else x.flatten(1))


def teacher_of(*, training: bool = False, **settings: Any) -> Teacher:
    """Equal weights in every teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(**settings)
        nn.init.uniform_(net.norm.running_var, 0.3, 2.0)
    net.requires_grad_(False).train(training)
    return Teacher("test", net, InputSpec(SHAPE, (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    return ImageSet(torch.randn(22, *SHAPE, generator=generator))


def distilled(teacher: Teacher, images: ImageSet, **settings: Any) -> Student:
    student = prepare(teacher, "w4a4", plan="every_layer")
    Calibrate(CalibrateConfig()).refine(student, images)
    config = DistillConfig(steps=4, batch_size=9, **settings)
    Distill(config).refine(student, images, seed=7)
    return student


def assert_equal(student: Student, other: Student) -> None:
    one, two = list(student.state_dict().values()), list(other.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_in_training_mode_teaches_as_in_eval_mode_and_stays_as_it_was(
    precision: str, images: ImageSet
) -> None:
    teacher = teacher_of(training=True)
    before = copy.deepcopy(teacher.module.state_dict())
    student = distilled(teacher, images, precision=precision)
    assert all(module.training for module in teacher.module.modules())
    for key, value in teacher.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert_equal(student, distilled(teacher_of(), images, precision=precision))


def test_one_part_in_training_mode_is_enough(images: ImageSet) -> None:
    teacher = teacher_of()
    teacher.module.norm.train()
    assert_equal(distilled(teacher, images), distilled(teacher_of(), images))
    assert not teacher.module.training
    assert teacher.module.norm.training
    assert int(teacher.module.norm.num_batches_tracked) == 0


def test_a_view_of_maps_teaches_as_flattening_does(images: ImageSet) -> None:
    """Of moved images, whose channels lie last."""
    options = {"augmentation": "shift", "mixing": "cutmix_images"}
    viewed = distilled(teacher_of(view=True), images, **options)
    flattened = distilled(teacher_of(view=False), images, **options)
    for one, other in zip(
        viewed.state_dict().values(), flattened.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("view", [False, True])
def test_images_are_laid_anew_only_for_a_network_that_refuses_them(
    view: bool, images: ImageSet
) -> None:
    teacher = teacher_of(view=view)
    expected = teacher.module(images.images)
    network = OwnNetwork(teacher)
    lying = images.images.contiguous(memory_format=torch.channels_last)
    teacher.module.layouts.clear()
    for _ in range(2):
        torch.testing.assert_close(network(lying)[0], expected, atol=1e-5, rtol=1e-5)
    # Once it is asked whether it takes them.
    assert teacher.module.layouts == [False, view, view]


@pytest.mark.slow
@pytest.mark.parametrize("view", [False, True])
def test_compiled_it_answers_the_same(view: bool, images: ImageSet) -> None:
    teacher = teacher_of(view=view)
    pair = pair_of(prepare(teacher, "w4a4"), bodies=False).compiled()
    lying = images.images.contiguous(memory_format=torch.channels_last)
    answer, features = pair.teacher(lying)
    assert features == []
    torch.testing.assert_close(answer, teacher.module(images.images), atol=1e-5, rtol=1e-5)


def test_what_the_network_refuses_for_another_reason_is_told() -> None:
    teacher = teacher_of()
    student = prepare(teacher, "w4a4")
    teacher.module.linear = nn.Linear(4, 7)
    pair = pair_of(student, bodies=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pair.teacher(torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("view", [False, True])
def test_the_best_student_is_judged_by_the_teacher_in_eval_mode(view: bool) -> None:
    """As many answers agree as the plain network in eval mode has in common with the student."""
    teacher, plain = teacher_of(training=True, view=view), teacher_of()
    source = make("gdfq", plain)
    student = prepare(teacher, BITS, plan="every_layer", batch_norm="frozen")
    taught(teacher, source, student=student, preset="learned", warm_up=0.0, held_out=64)
    (record,) = student.records
    shown = source.drawn(64, seed=7 * 1_000_003 + 2).images
    same = (student(shown).argmax(1) == plain.module(shown).argmax(1)).float().mean()
    assert record["last"]["score"] == pytest.approx(float(same))
    assert int(teacher.module.norm.num_batches_tracked) == 0

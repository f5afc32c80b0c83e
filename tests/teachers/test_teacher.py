import pytest
import torch
from torch import nn

from emptyset.errors import TeacherError
from emptyset.images.input_spec import InputSpec
from emptyset.teachers import Teacher

SPEC = InputSpec(shape=(2, 3, 4), mean=(0.1, 0.4), std=(0.5, 0.25))


def test_normalise_subtracts_the_mean_and_divides_by_the_std_of_each_channel() -> None:
    pixels = torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    ours = SPEC.normalise(pixels)
    for image in range(5):
        for channel, (mean, std) in enumerate([(0.1, 0.5), (0.4, 0.25)]):
            for value, expected in zip(
                ours[image, channel].flatten().tolist(),
                pixels[image, channel].flatten().tolist(),
                strict=True,
            ):
                assert value == pytest.approx((expected - mean) / std, rel=1e-12)


def test_pixels_are_the_way_back_and_stay_between_0_and_1() -> None:
    pixels = torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SPEC.pixels(SPEC.normalise(pixels)), pixels)
    far = SPEC.pixels(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 2, 3, 4))
    assert far[0].unique().tolist() == [0.0]
    assert far[1].unique().tolist() == [1.0]


def test_a_teacher_lists_its_batch_norms_and_its_last_linear_layer() -> None:
    class Special(nn.BatchNorm2d):
        """timm and others subclass it."""

    module = nn.Sequential(
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        Special(3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.Linear(5, 7),
    )
    module[2].running_mean.fill_(0.25)
    teacher = Teacher("made here", module, SPEC)
    norms = teacher.stored_batch_norms()
    assert [norm.name for norm in norms] == ["1", "2"]
    assert norms[1].mean.tolist() == [0.25] * 3
    assert norms[1].module is module[2]
    assert teacher.classifier_weight() is module[6].weight
    assert teacher.example(3).shape == (3, 2, 3, 4)
    assert Teacher("bare", nn.Flatten(), SPEC).classifier_weight() is None


def test_batch_norm_of_any_kind_counts_and_instance_norm_does_not() -> None:
    class Frozen(nn.Module):
        """As torchvision's and timm's: no BatchNorm of torch."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", torch.ones(3))

    module = nn.Sequential(
        nn.BatchNorm1d(2),
        nn.SyncBatchNorm(4),
        Frozen(),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.BatchNorm3d(5),
    )
    names = [norm.name for norm in Teacher("made here", module, SPEC).stored_batch_norms()]
    assert names == ["0", "1", "2", "4"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_floating_type_is_refused_with_the_way_out(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    spec = InputSpec((3, 2, 2), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(TeacherError, match=r"parameter '1.weight' is .*float.*module\.float\(\)"):
        Teacher("mine", module, spec)
    assert Teacher("mine", module.float(), spec).name == "mine"

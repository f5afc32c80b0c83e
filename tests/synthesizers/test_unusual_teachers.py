"""Teachers that lack something, or have it in another form: handled, or refused with the reason."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.inversion.config import InversionConfig
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import InputSpec, Teacher

SPEC = InputSpec((3, 8, 10), (0.5,) * 3, (0.25,) * 3)
NAMES = [e.name for e in synthesizers.entries() if issubclass(e.config, InversionConfig)]


def having(setting: str) -> list[str]:
    return [n for n in NAMES if setting in synthesizers.get(n).config.__dataclass_fields__]


WITHOUT = having("statistics_weight")
LABELLED = having("classes")


def make(name: str, teacher: Teacher, count: int = 5, **changes: Any) -> ImageSet:
    entry = synthesizers.get(name)
    made = entry.make(dataclasses.replace(entry.config.smallest(), **changes))
    images: ImageSet = made.synthesize(teacher, count, seed=0)
    return images


def filled(module: nn.Module) -> Teacher:
    """The network with weights and statistics that do not depend on its form."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return Teacher("test:net", module.requires_grad_(False).eval(), SPEC)


def convolutional(norm: Callable[[int], nn.Module], classes: int = 3) -> Teacher:
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(4, classes),
        )
    )  # fmt: skip


def bare() -> Teacher:
    return filled(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 3))
    )


# Without BatchNorm ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_without_batch_norm_the_error_names_what_does_work(name: str) -> None:
    # Every size is fixed in this network, so that no other error can come first.
    changes = {"low_resolution_share": 0.0} if name == "deep_inversion" else {}
    with pytest.raises(UnsupportedModelError) as caught:
        make(name, bare(), **changes)
    message = str(caught.value)
    assert f"{name} matches BatchNorm statistics, but test:net (Sequential) has no" in message
    assert "--images DIR" in message
    assert "`noise`" in message
    for other in WITHOUT:
        assert f"`{other}` with statistics_weight 0" in message


@pytest.mark.parametrize("name", WITHOUT)
def test_what_the_error_names_does_work(name: str) -> None:
    changes: dict[str, Any] = {"statistics_weight": 0.0}
    if name == "deep_inversion":
        changes["low_resolution_share"] = 0.0
    images = make(name, bare(), **changes)
    assert len(images) == 5
    assert images.targets is not None
    assert len(make("noise", bare())) == 5


# Classes -------------------------------------------------------------------------------------


def class_weights(name: str) -> dict[str, float]:
    """The weights that have to be 0, where they are not by themselves."""
    config = synthesizers.get(name).config
    return {w: 0.0 for w in config.class_weights if getattr(config(), w)}


def test_the_methods_that_may_do_without_classes_are_known() -> None:
    needed = {name: set(class_weights(name)) for name in NAMES}
    assert needed == {
        "deep_inversion": {"class_weight"}, "dffg": {"class_weight"}, "dsg": {"class_weight"},
        "knowledge_within": {"class_weight"}, "mixmix": {"class_weight"}, "hast": {"hard_weight"},
        "intraq": {"inception_weight", "margin_weight"}, "zeroq": set(), "genie_d": set(),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_a_teacher_of_one_class_are_refused_naming_what_needs_none(name: str) -> None:
    single = convolutional(nn.BatchNorm2d, classes=1)
    if not class_weights(name):
        assert make(name, single).targets is None
        return
    with pytest.raises(UnsupportedModelError, match=r"at least 2 classes.*gives \(1, 1\)") as found:
        make(name, single)
    told = str(found.value).partition("need no classes: ")[2]
    assert told == (
        "`deep_inversion` with class_weight 0, `dffg` with class_weight 0, `dsg` with "
        "class_weight 0, `genie_d`, `hast` with hard_weight 0, `intraq` with inception_weight 0 "
        "and margin_weight 0, `knowledge_within` with class_weight 0, `mixmix` with class_weight "
        "0, `noise`, `zeroq`."
    )


@pytest.mark.parametrize("name", LABELLED)
def test_without_classes_there_are_no_targets_and_one_class_will_do(name: str) -> None:
    assert make(name, convolutional(nn.BatchNorm2d), **class_weights(name)).targets is None
    single = convolutional(nn.BatchNorm2d, classes=1)
    assert make(name, single, **class_weights(name)).targets is None
    weights = " and ".join(f"'{w}'" for w in synthesizers.get(name).config.class_weights)
    with pytest.raises(ValueError, match=f"'classes' are .*{weights} (is|are) 0"):
        make(name, single, classes=(0,), **class_weights(name))


@pytest.mark.parametrize("name", WITHOUT)
def test_with_neither_statistics_nor_classes_there_is_nothing_to_learn(name: str) -> None:
    with pytest.raises(ValueError, match=r"'statistics_weight'.* 0: noth"):
        make(name, bare(), statistics_weight=0.0, **class_weights(name))


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("classes", "message"),
    [((0, 3), "class 3 is asked for.*classes 0 to 2"), ((-1,), "class -1"), ((1, 2, 1), "twice")],
)
def test_classes_that_the_teacher_does_not_have_are_refused(
    name: str, classes: tuple[int, ...], message: str
) -> None:
    changes = {"class_weight": 1.0} if name == "zeroq" else {}
    with pytest.raises(ImagesError, match=message):
        make(name, convolutional(nn.BatchNorm2d), classes=classes, **changes)


@pytest.mark.parametrize("name", LABELLED)
def test_only_the_classes_asked_for_are_made(name: str) -> None:
    changes: dict[str, Any] = {"class_weight": 1.0} if name == "zeroq" else {}
    if name == "mixmix":
        changes["store"] = "plain"
    targets = make(name, convolutional(nn.BatchNorm2d), 16, classes=(2,), **changes).targets
    assert targets is not None
    assert set(targets.tolist()) == {2}


# Other forms of BatchNorm --------------------------------------------------------------------


class FrozenNorm(nn.Module):
    """As detection backbones have it: no BatchNorm of torch, only its numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, FrozenNorm])
@pytest.mark.parametrize("name", ["zeroq", "dffg"])
def test_other_forms_of_batch_norm_give_the_same_images(name: str, norm: Any) -> None:
    expected = make(name, convolutional(nn.BatchNorm2d))
    assert torch.equal(make(name, convolutional(norm)).images, expected.images)


@pytest.mark.parametrize("name", ["zeroq", "deep_inversion", "hast"])
def test_timms_fused_batch_norm_gives_the_images_of_the_two_layers(name: str) -> None:
    timm_layers = pytest.importorskip("timm.layers")

    def network(fused: bool) -> Teacher:
        norms = [timm_layers.BatchNormAct2d(4)] if fused else [nn.BatchNorm2d(4), nn.ReLU()]
        return filled(
            nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2), *norms, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(4, 3),
            )
        )  # fmt: skip

    assert len(network(fused=True).stored_batch_norms()) == 1
    expected = make(name, network(fused=False))
    torch.testing.assert_close(make(name, network(fused=True)).images, expected.images)


def test_instance_norm_keeps_numbers_too_yet_not_those_of_batches() -> None:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    assert filled(nn.Sequential(nn.Conv2d(3, 4, 3), norm)).stored_batch_norms() == []


def mlp() -> Teacher:
    return filled(
        nn.Sequential(
            nn.Flatten(), nn.Linear(240, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)
        )
    )


def test_batch_norm_1d_after_convolutions_is_matched_too() -> None:
    given = filled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(48, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3),
        )
    )  # fmt: skip
    images = torch.randn(5, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    seen = FrozenTeacher(given).look(images)
    assert [layer.pixels for layer in seen.layers] == [12, 1]
    module: Any = given.module
    features = module[:5](images)
    expected = features.mean(0) - module[5].running_mean
    torch.testing.assert_close(seen.layers[1].batch_shift(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_with_batch_norm_1d_alone_is_matched_batch_by_batch(name: str) -> None:
    changes: dict[str, Any] = {"statistics": "batch"}
    if name == "deep_inversion":
        changes["low_resolution_share"] = 0.0
    assert bool(torch.isfinite(make(name, mlp(), **changes).images).all())


def test_images_alone_have_no_statistics_where_no_layer_sees_pixels() -> None:
    with pytest.raises(UnsupportedModelError, match="'statistics' to 'batch'"):
        make("zeroq", mlp())


# Wrapped, or not in eval mode ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["zeroq", "dffg", "genie_d"])
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda module: nn.DataParallel(torch.compile(module))],
    ids=["parallel", "compiled", "both"],
)
def test_a_wrapped_teacher_gives_the_same_images(name: str, wrap: Any) -> None:
    plain = convolutional(nn.BatchNorm2d)
    wrapped = Teacher("test:net", wrap(copy.deepcopy(plain.module)), SPEC)
    assert [n.name for n in wrapped.stored_batch_norms()] == ["1"]
    assert torch.equal(make(name, wrapped).images, make(name, plain).images)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_in_training_mode_keeps_its_statistics(name: str) -> None:
    plain = convolutional(nn.BatchNorm2d)
    training = Teacher("test:net", copy.deepcopy(plain.module).train(), SPEC)
    before = copy.deepcopy(training.module.state_dict())
    assert torch.equal(make(name, training).images, make(name, plain).images)
    for key, value in training.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert training.module.training

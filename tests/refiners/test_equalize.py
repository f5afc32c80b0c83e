"""Equalization: no output changes, every pair of ranges agrees, and what may not change stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.exporters.certificate import certify
from emptyset.exporters.onnx import export
from emptyset.graph.channel_chains import columns, find_chains, weight_of
from emptyset.graph.edits import channel_clip_bounds
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.refiners.bias_correction import BiasCorrection, BiasCorrectionConfig
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.equalize import Equalize, EqualizeConfig

DATA_FREE = CalibrateConfig(activation_values="batch_norm")


def equalized(
    small: Any, module: nn.Module, bits: str = "w4a4", plan: str = "integer", **options: object
) -> Student:
    student = prepare(small.teacher_of(module), bits, plan=plan)
    Equalize(EqualizeConfig(**options)).refine(student, small.images(4))
    return student


def ranges_of(student: Student) -> list[tuple[Tensor, Tensor]]:
    """Rows of the writer and columns of its readers, largest weight of each channel, by loops."""
    found = []
    for chain in find_chains(student.program):
        weight = weight_of(student.program, chain.writer)
        rows = torch.stack([channel.abs().max() for channel in weight])
        largest = torch.zeros_like(rows)
        for reader in chain.readers:
            taken = columns(weight_of(student.program, reader.node), reader.node)
            for position, channel in enumerate(reader.channels.tolist()):
                largest[channel] = torch.maximum(largest[channel], taken[position].abs().max())
        found.append((rows, largest))
    return found


@pytest.mark.parametrize("plan", ["integer", "every_layer", "edges_8bit"])
@pytest.mark.parametrize("balance", ["weights", "activations"])
@pytest.mark.parametrize("make", ["Mobile", "Plain"])
def test_float_mode_stays_the_teacher(make: str, balance: str, plan: str, small: Any) -> None:
    student, x = (
        equalized(small, getattr(small, make)(), plan=plan, balance=balance),
        small.images(50).images,
    )
    with student.float_mode():
        expected = student.teacher.module(x)
        scale = expected.abs().max().item()
        torch.testing.assert_close(student(x), expected, atol=1e-5 * max(1.0, scale), rtol=0)


class Between(nn.Module):
    """A convolution with ``outputs`` channels, something, a layer, and a head for its channels."""

    def __init__(
        self, outputs: int, between: Callable[[Tensor], Tensor], layer: nn.Module, axis: int = 1
    ) -> None:
        super().__init__()
        self.first, self.between, self.layer = nn.Conv2d(3, outputs, 3), between, layer
        self.head, self.axis = nn.Linear(7, 5), axis

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layer(self.between(F.relu(self.first(x)))))
        return self.head(x.movedim(self.axis, 1).unsqueeze(2).flatten(2).mean(2))


class Stacked(nn.Module):
    """Rows of two convolutions below each other."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.reader, self.head = nn.Conv2d(8, 7, 3), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.above(x)), F.relu(self.below(x))], 2)
        return self.head(F.relu(self.reader(x)).mean((2, 3)))


class MaxPooled(nn.Module):
    """One convolution is read by another and, behind an adaptive max pool, by a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)
        self.right = nn.Linear(6 * 2 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = F.adaptive_max_pool2d(x, (2, 4)).flatten(1)
        return self.left(x).mean((2, 3)) + self.right(pooled)


class ChannelsLast(nn.Module):
    """Linears over ``(N, rows, W, C)``."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.stem = rows, nn.Conv2d(3, 6, 1)
        self.one, self.two, self.head = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))[:, :, : self.rows].permute(0, 2, 3, 1)
        return self.head(F.relu(self.two(F.relu(self.one(x)))).mean((1, 2)))


class Convolutions(nn.Module):
    """Two convolutions of one or three dimensions."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dimensions == 1 else nn.Conv3d
        self.one = conv(3 if dimensions == 1 else 1, 6, 3, padding=1)
        self.two, self.head = conv(6, 7, 3), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2) if self.one.weight.dim() == 3 else x.unsqueeze(1)
        return self.head(F.relu(self.two(F.relu(self.one(x)))).flatten(2).mean(2))


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
@pytest.mark.parametrize(
    ("make", "rescaled"),
    [
        (
            lambda: Between(8, lambda x: x.mean(1, keepdim=True), nn.Conv2d(1, 7, 3)),
            {"layer"},
        ),
        (
            lambda: Between(
                8,
                lambda x: F.adaptive_avg_pool2d(F.pixel_shuffle(x, 2), 1).flatten(1),
                nn.Linear(2, 7),
            ),
            {"layer"},
        ),
        (
            lambda: Between(6, lambda x: F.pad(x, (2, 1)).mean((2, 3)), nn.Linear(6, 7)),
            {"first", "layer"},
        ),
        (
            # As many columns as channels: the linear reads the columns.
            lambda: Between(10, lambda x: x, nn.Linear(10, 7), axis=3),
            {"layer"},
        ),
        (Stacked, {"reader"}),
        (MaxPooled, {"stem"}),
        (lambda: ChannelsLast(8), {"stem", "one", "two"}),
        (lambda: ChannelsLast(1), {"stem", "one", "two"}),
        (lambda: Convolutions(1), {"one", "two"}),
        (lambda: Convolutions(3), {"one", "two"}),
    ],
    ids=[
        "mean over channels", "pool of shuffled pixels", "mean of a padded image",
        "along the width", "rows of two layers", "adaptive max pool", "channels last",
        "channels last, one row", "conv1d", "conv3d",
    ],
)  # fmt: skip
def test_float_mode_stays_the_teacher_wherever_channels_go(
    make: Callable[[], nn.Module], rescaled: set[str], plan: str, small: Any
) -> None:
    student, x = equalized(small, make(), plan=plan), small.images(50).images
    with student.float_mode():
        expected = student.teacher.module(x)
        scale = expected.abs().max().item()
        torch.testing.assert_close(student(x), expected, atol=1e-5 * max(1.0, scale), rtol=0)
    # Of these layers the bias, which nothing but their own factors changes.
    before, after = student.teacher.module.state_dict(), student.program.state_dict()
    biases = [name for name in before if name.endswith(".bias")]
    changed = {n.removesuffix(".bias") for n in biases if not torch.equal(before[n], after[n])}
    assert changed == rescaled


def test_an_adaptive_max_pool_is_balanced_by_what_batch_norm_tells(small: Any) -> None:
    net = nn.Sequential(
        small.block(3, 6), nn.ReLU(), nn.AdaptiveMaxPool2d((2, 3)), nn.Conv2d(6, 4, 2),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    student, x = equalized(small, net, balance="activations"), small.images(20).images
    assert not torch.equal(student.program.state_dict()["0.0.bias"], net[0][1].bias)
    with student.float_mode():
        torch.testing.assert_close(student(x), net(x), atol=1e-4, rtol=1e-5)
    Calibrate(DATA_FREE).refine(student, small.images(1))
    BiasCorrection(BiasCorrectionConfig()).refine(student, small.images(1))
    assert bool(torch.isfinite(student(x)).all())


def test_rows_and_columns_have_the_same_range_afterwards(small: Any) -> None:
    before = prepare(small.teacher_of(small.Plain()), "w8a8")
    assert max(float((rows / columns).log().abs().max()) for rows, columns in ranges_of(before)) > 1
    after = equalized(small, small.Plain(), sweeps=200, tolerance=1e-6)
    for rows, largest in ranges_of(after):
        torch.testing.assert_close(rows, largest, rtol=1e-3, atol=0)


def test_one_pair_is_divided_by_the_published_factor(small: Any) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x))).mean((2, 3))

    student = equalized(small, Pair())
    net = student.teacher.module
    for channel in range(5):
        r1 = net.first.weight[channel].abs().max().item()
        r2 = net.second.weight[:, channel].abs().max().item()
        factor = (r1 / r2) ** 0.5
        torch.testing.assert_close(
            student.program.first.weight[channel], net.first.weight[channel] / factor
        )
        assert student.program.first.bias[channel].item() == pytest.approx(
            net.first.bias[channel].item() / factor, rel=1e-5
        )
        torch.testing.assert_close(
            student.program.second.weight[:, channel], net.second.weight[:, channel] * factor
        )


def test_balanced_activations_reach_equally_far_before_a_depthwise_layer(small: Any) -> None:
    student = equalized(small, small.Mobile(), balance="activations", deviations=4.0, sweeps=50)
    from emptyset.graph.activation_statistics import activation_statistics

    known = activation_statistics(student)
    (chain,) = [c for c in find_chains(student.program) if c.name == "again.0.0"]
    high = known[chain.readers[0].node.args[0]].reach(4.0)[1]
    torch.testing.assert_close(high, high.mean().expand_as(high), rtol=2e-3, atol=0)


def test_channels_that_reach_their_clip_keep_one_bound_and_the_others_none(small: Any) -> None:
    student = equalized(small, small.Mobile(), clip_deviations=3.0)
    net, seen = student.teacher.module, 0
    for node in student.program.graph.nodes:
        bounds = channel_clip_bounds(student.program, node)
        if bounds is None:
            continue
        seen += 1
        chain = next(c for c in find_chains(student.program) if node in c.clips)
        norm = net.get_submodule(chain.name.rsplit(".", 1)[0])[1]
        reaches = norm.bias + 3 * norm.weight.abs() > 6
        exact = student.originals[str(node.args[2].target)].flatten()
        assert len(set(bounds[1].tolist())) == 1
        if bool(reaches.any()):
            torch.testing.assert_close(exact[reaches], bounds[1][reaches])
        else:
            assert bounds[1][0].item() == float("inf")
        assert bounds[0].tolist() == [0.0] * len(exact)
        divisors = norm.bias / student.program.get_submodule(chain.name).output_mean
        torch.testing.assert_close(exact, (6 / divisors).float())
    assert seen == 3


def test_dead_channels_and_constant_weights_are_left_as_they_are(small: Any) -> None:
    net = small.Plain()
    teacher = small.teacher_of(net)
    with torch.no_grad():
        net.first[0].weight[2] = 0.0
        net.second[0].weight[:, 4] = 0.0
        net.third.weight.fill_(0.25)
    student = prepare(teacher, "w4a4")
    Equalize(EqualizeConfig()).refine(student, small.images(4))
    weights = [p for p in student.program.parameters() if p.is_floating_point()]
    assert all(bool(torch.isfinite(p).all()) for p in weights)
    x = small.images(20).images
    with student.float_mode():
        torch.testing.assert_close(student(x), net(x), atol=1e-4, rtol=1e-5)
    Calibrate(DATA_FREE).refine(student, small.images(1))
    assert bool(torch.isfinite(student(x)).all())


def test_a_grouped_convolution_is_balanced_group_by_group(small: Any) -> None:
    net = nn.Sequential(
        small.block(3, 6, 1), nn.ReLU(), small.block(6, 8, groups=2), nn.ReLU(),
        small.block(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    student = equalized(small, net, sweeps=100, tolerance=1e-6)
    for rows, largest in ranges_of(student):
        torch.testing.assert_close(rows, largest, rtol=1e-3, atol=0)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.same, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.same(F.relu(self.same(F.relu(self.first(x)))))).mean((2, 3)))


def test_a_layer_that_is_used_twice_stays(small: Any) -> None:
    student = equalized(small, Twice())
    for name, value in student.teacher.module.state_dict().items():
        assert torch.equal(student.program.state_dict()[name], value), name


def test_a_calibrated_student_gets_its_ranges_anew(small: Any) -> None:
    student, shown = prepare(small.teacher_of(small.Mobile()), "w8a8"), small.images(16)
    Calibrate(CalibrateConfig()).refine(student, shown)
    Equalize(EqualizeConfig()).refine(student, shown)
    other = prepare(student.teacher, "w8a8")
    Equalize(EqualizeConfig()).refine(other, shown)
    Calibrate(CalibrateConfig()).refine(other, shown)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in student.state_dict().items())


def test_it_comes_before_what_learns_and_wants_folded_norms(small: Any) -> None:
    student = prepare(small.teacher_of(small.Plain()), "w8a8")
    Calibrate(DATA_FREE).refine(student, small.images(1))
    BiasCorrection(BiasCorrectionConfig()).refine(student, small.images(1))
    with pytest.raises(RecipeError, match=r"changed before .*Put equalize first"):
        Equalize(EqualizeConfig()).refine(student, small.images(4))
    frozen = prepare(student.teacher, "w8a8", plan="every_layer", batch_norm="frozen")
    with pytest.raises(UnsupportedModelError, match="batch_norm 'fold'"):
        Equalize(EqualizeConfig()).refine(frozen, small.images(4))


def test_a_second_equalization_changes_nothing_more(small: Any) -> None:
    student = equalized(small, small.Mobile(), sweeps=300, tolerance=1e-9)
    before = student.state_dict()
    Equalize(EqualizeConfig()).refine(student, small.images(4))
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_certificate_of_an_equalized_student_holds(
    bits: str, tmp_path: Path, small: Any
) -> None:
    student, probes = equalized(small, small.Mobile(), bits), small.images(16)
    Calibrate(DATA_FREE).refine(student, probes)
    artefact = export(student, tmp_path / "model.onnx")
    assert certify(artefact.path, student, probes, simulation=artefact.simulation).holds
    assert artefact.integer_share == 1.0
    # Clips were absorbed by the codes: none is left in float.
    assert not {"Min", "Max", "Relu"} & artefact.operators.keys()
    again = prepare(student.teacher, bits)
    again.load_state_dict(student.state_dict())
    assert certify(artefact.path, again, probes).holds


def test_settings_are_checked(small: Any) -> None:
    with pytest.raises(ValueError, match="balance must be one of weights, activations"):
        EqualizeConfig(balance="both")
    with pytest.raises(ValueError, match=r"sweeps must be at least 1\. Got 0"):
        EqualizeConfig(sweeps=0)
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        EqualizeConfig(tolerance=0.0)


def test_unquantized_rescaled_students_clip_where_float_mode_does_for_most_values(
    small: Any,
) -> None:
    student, shown = equalized(small, small.Mobile()), ImageSet(small.images(60).images)
    with student.float_mode():
        expected = student(shown.images)
    with student.unquantized():
        found = student(shown.images)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()

"""Splitting: the same function, smaller steps, and a file that gathers codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.exporters.certificate import certify
from emptyset.exporters.onnx import export
from emptyset.graph.student import Student, prepare
from emptyset.images.no_images import NO_IMAGES
from emptyset.refiners.bias_correction import BiasCorrection, BiasCorrectionConfig
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.equalize import Equalize, EqualizeConfig
from emptyset.refiners.outlier_channel_splitting import (
    OutlierChannelSplitting,
    OutlierChannelSplittingConfig,
    split_counts,
    split_rows,
)

DATA_FREE = CalibrateConfig(activation_values="batch_norm")


def with_outliers(small: Any, module: nn.Module) -> Any:
    teacher = small.teacher_of(module)
    with torch.no_grad():
        module.second[0].weight[:, 4] *= 6.0
        module.third.weight[2, 1] *= 9.0
    return teacher


def split(student: Student, shown: Any = NO_IMAGES, **options: Any) -> Student:
    config = OutlierChannelSplittingConfig(**{"expand_ratio": 0.2, **options})
    OutlierChannelSplitting(config).refine(student, shown)
    return student


@pytest.mark.parametrize("plan", ["integer", "every_layer", "edges_8bit"])
@pytest.mark.parametrize("choice", ["gain", "largest"])
def test_the_function_stays_and_layers_grow(choice: str, plan: str, small: Any) -> None:
    net = small.Plain()
    student = split(prepare(with_outliers(small, net), "w4a8", plan=plan), choice=choice)
    shapes = {layer.name: layer.weight_shape for layer in student.layers()}
    assert shapes["first.0"] == (6, 3, 3, 3)
    assert shapes["second.0"] == (7, 6 + 2, 1, 1)
    assert shapes["third"] == (4, 7 + 2, 3, 3)
    x = small.images(30).images
    with student.float_mode():
        torch.testing.assert_close(student(x), net(x), atol=1e-4, rtol=1e-5)
    again = prepare(student.teacher, "w4a8", plan=plan)
    again.load_state_dict(student.state_dict())
    with again.float_mode():
        assert (again(x) - net(x)).abs().max() < 1e-4 * net(x).abs().max()


def summed(weights: Tensor, index: Tensor, count: int) -> Tensor:
    """What the copies of each channel add up to, by a loop."""
    out = torch.zeros(len(weights), count, *weights.shape[2:], dtype=weights.dtype)
    for position, channel in enumerate(index.tolist()):
        out[:, channel] += weights[:, position]
    return out


def test_the_rounded_copies_are_nearer_to_the_weights(small: Any) -> None:
    plain = prepare(with_outliers(small, small.Plain()), "w4a8")
    student = split(prepare(plain.teacher, "w4a8"))
    errors = {}
    for name, one in (("plain", plain), ("split", student)):
        Calibrate(DATA_FREE).refine(one, NO_IMAGES)
        for layer in ("second.0", "third"):
            folded = prepare(plain.teacher, "w4a8").program.get_submodule(layer).weight
            weight = one.program.get_submodule(layer).weight
            rounded = one.quantizers[f"{layer}.weight"](weight)
            index = one.program.state_dict().get(
                f"{layer}.input_index", torch.arange(weight.shape[1])
            )
            gap = summed(rounded, index, folded.shape[1]) - folded
            errors[name, layer] = gap.square().sum().item()
    for layer in ("second.0", "third"):
        assert errors["split", layer] < 0.8 * errors["plain", layer]


def test_rounded_copies_add_up_to_the_rounded_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 5 * torch.randn(4, 6, 3, generator=generator, dtype=torch.double)
    steps = torch.tensor([0.3, 0.25, 1.0, 0.7], dtype=torch.double)
    copies = torch.tensor([1, 2, 1, 3, 4, 1])
    shared = split_rows(rows, copies, steps)
    assert shared.shape == (4, 12, 3)
    index = torch.arange(6).repeat_interleave(copies)
    torch.testing.assert_close(summed(shared, index, 6), rows)
    around = steps[:, None, None]
    rounded = (shared / around).round() * around
    expected = (rows / around).round() * around
    torch.testing.assert_close(summed(rounded, index, 6), expected)


def test_two_halves_are_the_published_ones() -> None:
    rows, step = torch.tensor([[[3.1]]], dtype=torch.double), torch.tensor([0.4]).double()
    halves = split_rows(rows, torch.tensor([2]), step).flatten().tolist()
    assert halves == pytest.approx([(3.1 - 0.2) / 2, (3.1 + 0.2) / 2])


def test_the_largest_weight_or_the_largest_gain_is_split() -> None:
    largest = torch.tensor([[9.0, 8.9, 1.0], [1.0, 1.0, 4.0], [0.5, 0.2, 5.0]])
    assert split_counts(largest, 1, choice="largest").tolist() == [2, 1, 1]
    # Channel 0 gains 9² - 8.9², channel 2 gains 4² - 2² and 5² - 2.5².
    assert split_counts(largest, 1, choice="gain").tolist() == [1, 1, 2]
    # Two splits of one channel leave a third of its weight in each copy.
    assert split_counts(torch.tensor([[9.0, 1.0]]), 3, choice="largest").tolist() == [4, 1]


def test_grouped_first_and_shared_layers_are_left_alone(small: Any) -> None:
    student = split(prepare(small.teacher_of(small.Mobile()), "w4a8"))
    grown = {
        name.removesuffix(".input_index")
        for name in student.program.state_dict()
        if name.endswith(".input_index")
    }
    assert grown
    assert not grown & {"stem.0", "depthwise.0", "again.1.0"}


def test_a_layer_that_would_lose_is_left_alone(small: Any) -> None:
    net = small.Plain()
    teacher = small.teacher_of(net)
    with torch.no_grad():
        net.third.weight.fill_(0.25)
    student = split(prepare(teacher, "w4a8", plan="every_layer"))
    assert "third.input_index" not in student.program.state_dict()


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_certificate_holds_and_all_of_it_runs_on_integers(
    bits: str, small: Any, tmp_path: Path
) -> None:
    student, probes = prepare(with_outliers(small, small.Plain()), bits), small.images(16)
    Equalize(EqualizeConfig()).refine(student, NO_IMAGES)
    split(student)
    Calibrate(DATA_FREE).refine(student, NO_IMAGES)
    artefact = export(student, tmp_path / "model.onnx")
    assert "Gather" in artefact.operators
    assert artefact.integer_share == 1.0
    certificate = certify(artefact.path, student, probes, simulation=artefact.simulation)
    assert certificate.holds, certificate.fault


def test_a_calibrated_student_gets_its_ranges_anew(small: Any) -> None:
    student, shown = prepare(with_outliers(small, small.Plain()), "w4a8"), small.images(12)
    Calibrate(CalibrateConfig()).refine(student, shown)
    split(student, shown)
    assert all(bool(q.calibrated) for q in student.quantizers.values())
    assert bool(torch.isfinite(student(shown.images)).all())


def test_it_comes_before_what_learns(small: Any) -> None:
    student = prepare(small.teacher_of(small.Plain()), "w8a8")
    Calibrate(DATA_FREE).refine(student, NO_IMAGES)
    BiasCorrection(BiasCorrectionConfig()).refine(student, NO_IMAGES)
    with pytest.raises(RecipeError, match="Put outlier_channel_splitting first"):
        split(student)
    frozen = prepare(student.teacher, "w8a8", plan="every_layer", batch_norm="frozen")
    with pytest.raises(UnsupportedModelError, match="batch_norm 'fold'"):
        split(frozen)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="expand_ratio must be above 0"):
        OutlierChannelSplittingConfig(expand_ratio=0.0)
    with pytest.raises(ValueError, match="choice must be one of gain, largest"):
        OutlierChannelSplittingConfig(choice="random")

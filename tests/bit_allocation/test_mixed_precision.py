"""Mixed precision as a whole, against every plan of a small network."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import emptyset
from emptyset.bit_allocation.mixed_precision import MixedPrecision, require_reachable
from emptyset.errors import ImagesError, RecipeError
from emptyset.evaluate.agreement import divergence
from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.quantizers.bits import Bits
from emptyset.registry import refiners
from emptyset.teachers.teacher import Teacher

PLAN = "every_layer"
WIDTHS = (2, 4, 8)
COUNTS = {"a": 3 * 6 * 9, "b": 6 * 7 * 9, "c": 7 * 9 * 2, "d": 9 * 5}


@pytest.fixture(scope="module")
def found(four_layers: Teacher, images: ImageSet) -> MixedPrecision:
    return emptyset.mixed_precision(
        four_layers, images, "w8a8", budget="5.1bits", weights=WIDTHS, plan=PLAN
    )


def calibrated_divergence(teacher: Teacher, images: ImageSet, **options: Any) -> float:
    student = prepare(teacher, **options)
    entry = refiners.get("calibrate")
    entry.make(entry.config()).refine(student, images, seed=0)
    with torch.no_grad():
        logits = teacher.module(images.images)
        return float(divergence(logits, student(images.images)).mean())


def test_the_chosen_plan_is_the_best_of_all_that_meet_the_budget(found: MixedPrecision) -> None:
    damage = {
        (layer.name, option.weights): option.damage
        for layer in found.layers
        for option in layer.options
    }
    assert len(damage) == 4 * 3
    best = min(
        sum(damage[name, bits] for name, bits in zip(COUNTS, plan, strict=True))
        for plan in itertools.product(WIDTHS, repeat=4)
        if sum(COUNTS[name] * b for name, b in zip(COUNTS, plan, strict=True))
        <= 5.1 * sum(COUNTS.values())
    )
    assert found.chosen.predicted == pytest.approx(best, rel=1e-9)
    bits = [Bits.parse(found.overrides[name]).weights for name in COUNTS]
    total = sum(COUNTS[name] * b for name, b in zip(COUNTS, bits, strict=True))
    assert found.chosen.average_bits == pytest.approx(total / sum(COUNTS.values()))
    assert found.chosen.average_bits <= 5.1
    assert len(set(bits)) > 1, "a uniform plan would show nothing"


def test_every_point_of_the_frontier_is_the_best_for_its_cost(found: MixedPrecision) -> None:
    damage = {layer.name: [o.damage for o in layer.options] for layer in found.layers}
    plans = [
        (
            sum(COUNTS[n] * WIDTHS[o] for n, o in zip(COUNTS, plan, strict=True)),
            sum(damage[n][o] for n, o in zip(COUNTS, plan, strict=True)),
        )
        for plan in itertools.product(range(3), repeat=4)
    ]
    weights = sum(COUNTS.values())
    for point in found.frontier:
        best = min(d for cost, d in plans if cost <= point.cost * weights + 1e-6)
        assert point.predicted == pytest.approx(best, rel=1e-9)
    costs = [point.cost for point in found.frontier]
    predicted = [point.predicted for point in found.frontier]
    assert costs == sorted(costs)
    assert predicted == sorted(predicted, reverse=True)
    assert costs[0] == pytest.approx(2.0)
    assert len(costs) > 5


def test_another_budget_needs_no_new_measurement(found: MixedPrecision) -> None:
    again = found.within("5.1bits")
    assert again.overrides == found.overrides
    smaller = found.within("3bits")
    assert smaller.average_bits <= 3 < again.average_bits
    assert smaller.predicted <= min(p.predicted for p in found.frontier if p.cost <= 3)
    assert found.within(0.7).size_bytes <= 0.7 * sum(COUNTS.values())
    with pytest.raises(RecipeError, match="reach is 2bits"):
        found.within("1bits")


def test_what_is_measured_is_the_divergence_of_the_prepared_student(
    found: MixedPrecision, four_layers: Teacher, images: ImageSet
) -> None:
    assert found.chosen.measured == pytest.approx(
        calibrated_divergence(
            four_layers, images, bits="w8a8", plan=PLAN, overrides=found.overrides
        ),
        rel=1e-4,
    )
    assert set(found.uniform) == {"w2a8", "w4a8", "w8a8"}
    for bits, uniform in found.uniform.items():
        expected = calibrated_divergence(four_layers, images, bits=bits, plan=PLAN)
        assert uniform.measured == pytest.approx(expected, rel=1e-4, abs=1e-9)
    student = prepare(four_layers, "w8a8", plan=PLAN, overrides=found.overrides)
    given = {name: bits.weights for name, bits in student.layer_bits.items()}
    assert given == {n: Bits.parse(found.overrides[n]).weights for n in COUNTS}


def test_costs_of_a_plan_are_those_computed_by_hand(found: MixedPrecision) -> None:
    four = found.uniform["w4a8"]
    total = sum(COUNTS.values())
    assert (four.size_bytes, four.packed_bytes) == (total / 2, total / 2)
    two = found.uniform["w2a8"]
    assert (two.size_bytes, two.packed_bytes) == (total / 2, total / 4)
    # 6x8, 2x3 and 2x2 positions; the image and the pooled features are float, so 32 bits.
    macs = {"a": COUNTS["a"] * 48, "b": COUNTS["b"] * 6, "c": COUNTS["c"] * 4, "d": COUNTS["d"]}
    inputs = {"a": 32, "b": 8, "c": 8, "d": 32}
    assert two.bit_operations == sum(2 * macs[n] * inputs[n] for n in COUNTS)


def test_inputs_are_chosen_too_where_widths_are_given(
    four_layers: Teacher, images: ImageSet
) -> None:
    found = emptyset.mixed_precision(
        four_layers, images, "w8a8", budget="0.85xBOPs", weights=(4, 8), activations=(4, 8)
    )
    assert set(found.uniform) == {"w4a4", "w8a4", "w4a8", "w8a8"}
    options = {layer.name: layer.options for layer in found.layers}
    assert [(o.weights, o.inputs) for o in options["b"]] == [(4, 4), (8, 4), (4, 8), (8, 8)]
    assert len(options["a"]) == len(options["d"]) == 1, "edges stay at 8 bits"
    limit = 0.85 * sum(layer.macs * 64 for layer in found.layers)
    assert found.chosen.bit_operations <= limit
    best = min(
        sum(choice[i].damage for i in range(4))
        for choice in itertools.product(*(layer.options for layer in found.layers))
        if sum(
            layer.macs * option.weights * (option.inputs or 32)
            for layer, option in zip(found.layers, choice, strict=True)
        )
        <= limit
    )
    assert found.chosen.predicted == pytest.approx(best, rel=1e-9)


def test_layers_that_the_user_fixed_stay(four_layers: Teacher, images: ImageSet) -> None:
    fixed = {"[bc]": "w6a7"}
    with pytest.raises(RecipeError, match="nothing to choose"):
        emptyset.mixed_precision(four_layers, images, "w8a8", budget="4bits", overrides=fixed)
    found = emptyset.mixed_precision(
        four_layers, images, "w8a8", budget="2.5bits", weights=(2, 3), overrides={"b": "w6a7"}
    )
    assert set(found.overrides) == {"c"}
    student = prepare(four_layers, "w8a8", overrides={**found.overrides, "b": "w6a7"})
    assert (student.layer_bits["b"].weights, student.layer_bits["b"].inputs) == (6, 7)
    assert student.layer_bits["c"].weights == 2


@pytest.mark.parametrize(
    ("budget", "options", "expected"),
    [
        ("0.2", {}, r"budget: 0.2 cannot be met: the least that these widths reach is 0\.\d+\. .*"
         "no weight in fewer than 4 bits"),
        ("100B", {}, r"the least that these widths reach is \d+B"),
        ("1.5bits", {}, r"the least that these widths reach is 2bits\. Give at least that\."),
        ("3bits", {"weights": (4, 8)}, "reach is 4bits.*narrower weights"),
        ("0.01xBOPs", {}, r"reach is 0\.\d+xBOPs.*mixed_precision.activations"),
        ("1kBOPs", {}, r"reach is \d+BOPs"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_met_names_the_least_that_can(
    four_layers: Teacher, budget: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        require_reachable(four_layers, budget=budget, **options)
    # What the message names can be met.
    named = str(caught.value).split("reach is ")[1].split(" ")[0].rstrip(".,")
    require_reachable(four_layers, budget=named, **options)


def test_it_is_refused_before_anything_is_measured(four_layers: Teacher, disk: Any) -> None:
    never: Any = None
    with pytest.raises(RecipeError, match="cannot be met"):
        emptyset.mixed_precision(four_layers, never, budget="1.5bits", monitor=disk())


def test_wrong_settings_are_explained(four_layers: Teacher, images: ImageSet) -> None:
    with pytest.raises(RecipeError, match="weights: expected bit widths"):
        emptyset.mixed_precision(four_layers, images, budget="4bits", weights=(1, 4))
    with pytest.raises(RecipeError, match="activations: expected bit widths"):
        emptyset.mixed_precision(four_layers, images, budget="4bits", activations=())
    with pytest.raises(RecipeError, match="at least 1 image"):
        emptyset.mixed_precision(four_layers, images, budget="4bits", count=0)
    with pytest.raises(RecipeError, match="to 4 bits before the layer could read it at more"):
        emptyset.mixed_precision(
            four_layers, images, "w4a4", budget="0.9xBOPs", activations=(4, 6), plan=PLAN
        )


def test_an_average_needs_weights_to_choose(
    teacher_of: Callable[..., Teacher], images: ImageSet
) -> None:
    class OnlyInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu().flatten(1))

    teacher = teacher_of(OnlyInputs())
    options: dict[str, Any] = {"plan": "edges_8bit", "last_layer_input_8": False}
    with pytest.raises(RecipeError, match="Limit bit operations instead"):
        emptyset.mixed_precision(teacher, images, budget="4bits", **options)
    found = emptyset.mixed_precision(
        teacher, images, budget="0.98xBOPs", activations=(2, 8), **options
    )
    assert [len(layer.options) for layer in found.layers] == [1, 2]


def test_images_are_spread_evenly_over_the_set(four_layers: Teacher, images: ImageSet) -> None:
    few = emptyset.mixed_precision(four_layers, images, budget="4bits", count=3, weights=(4, 8))
    chosen = images.subset(torch.tensor([0, 3, 7]))
    same = emptyset.mixed_precision(four_layers, chosen, budget="4bits", weights=(4, 8))
    assert few.image_count == 3
    assert few == same


def two_widths(teacher: Teacher, images: ImageSet, **options: Any) -> MixedPrecision:
    return emptyset.mixed_precision(teacher, images, budget="4.5bits", weights=(2, 8), **options)


@pytest.fixture(scope="module")
def plain(four_layers: Teacher, images: ImageSet) -> MixedPrecision:
    return two_widths(four_layers, images)


def test_killed_at_any_moment_it_ends_with_the_same_plan(
    four_layers: Teacher, images: ImageSet, plain: MixedPrecision, disk: Any
) -> None:
    # Two widths and the chosen plan keep four states each: a batch of calibration, ranges, a batch
    # of damages, all damages. Killed before the second and the third ever saw an image.
    for limit in (6, 10):
        some = disk(limit)
        with pytest.raises(disk.Killed):
            two_widths(four_layers, images, monitor=some)
        some.limit = None
        assert two_widths(four_layers, images, monitor=some) == plain
        assert set(some.said) == {"calibrate", "sensitivity", "frontier"}
        # It went on; it did not start again: at most one batch was seen twice.
        for what in ("calibrate", "sensitivity"):
            assert some.said.count(what) <= 3 + 1


def test_less_memory_gives_smaller_batches_and_the_same_plan(
    four_layers: Teacher,
    images: ImageSet,
    plain: MixedPrecision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from emptyset.bit_allocation import candidates

    sizes: list[int] = []
    measure = candidates.damages

    def listening(*values: Any, batch_size: int, **named: Any) -> Any:
        sizes.append(batch_size)
        return measure(*values, batch_size=batch_size, **named)

    monkeypatch.setattr(candidates, "damages", listening)
    tight = two_widths(four_layers, images, memory=1e-4)
    assert len(sizes) == 3
    assert max(sizes) < 11
    assert tight.overrides == plain.overrides


def test_few_images_are_warned_of(four_layers: Teacher, images: ImageSet, disk: Any) -> None:
    few = disk()
    two_widths(four_layers, images, count=7, monitor=few)
    assert few.noted == [
        "Warning: mixed precision is measured on 7 images only. A plan then fits these few: it can "
        "be worse than the same bits everywhere. Give 64 or more."
    ]
    many = disk()
    again = images.subset(torch.arange(11).repeat(6)[:64])
    two_widths(four_layers, again, monitor=many)
    assert many.noted == []


def test_what_is_told_is_plain_data(found: MixedPrecision) -> None:
    told = json.loads(json.dumps(found.to_json()))
    assert told["overrides"] == found.overrides
    assert told["limit"] == pytest.approx(5.1, rel=1e-3)
    assert [layer["name"] for layer in told["layers"]] == list(COUNTS)
    for layer in told["layers"]:
        option = layer["options"][layer["chosen"]]
        assert option["weights"] == Bits.parse(found.overrides[layer["name"]]).weights
    assert told["frontier"][0]["overrides"].keys() == found.overrides.keys()


def test_a_network_that_is_no_classifier_is_refused(
    teacher_of: Callable[..., Teacher], images: ImageSet
) -> None:
    teacher = teacher_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with pytest.raises(ImagesError, match="no classifier"):
        emptyset.mixed_precision(teacher, images, budget="4bits", plan=PLAN)

"""The practical recipes: chosen by bits, cut to what a network costs, told in one line."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from emptyset.errors import BitsError, RecipeError, UnknownNameError
from emptyset.job import recipe_for
from emptyset.job.from_options import chosen_recipe
from emptyset.quantizers.bits import Bits
from emptyset.recipe import Recipe, find_recipe
from emptyset.recipe_by_bits import (
    practical_choice,
    practical_names,
    practical_recipe,
    practical_recipes,
    reason,
    work_of,
)
from emptyset.recipe_without_images import DATA_FREE_REFINERS
from emptyset.registry import refiners, synthesizers
from emptyset.teachers.cost import NetworkCost
from emptyset.teachers.embedded import train_images_path

DIGITS = "embedded:digits-resnet"
MOBILE = "embedded:digits-mobilenet"
SMALL = NetworkCost(products=40_000_000, values=190_000, depthwise=False, device="cpu")
LARGE = NetworkCost(products=1_800_000_000, values=2_500_000, depthwise=False, device="cpu")
HUGE = NetworkCost(products=17_000_000_000, values=30_000_000, depthwise=True, device="cpu")


def methods(recipe: Recipe) -> list[str]:
    return [section.method for section in recipe.refine]


# By bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        ("w8a8", "practical_w8a8"),
        ("w7a8", "practical_w4a8"),
        ("w4a8", "practical_w4a8"),
        ("w8a7", "practical_w4a4"),
        ("w8a4", "practical_w4a4"),
        ("w4a4", "practical_w4a4"),
        ("w3a8", "practical_w3a3"),
        ("w3a3", "practical_w3a3"),
        ("w2a4", "practical_w2a4"),
        ("w2a8", "practical_w2a4"),
        ("w4a3", "practical_w3a3"),
        ("w2a2", "practical_w2a2"),
    ],
)
def test_the_bits_choose_the_recipe(bits: str, name: str) -> None:
    assert practical_recipe(bits).name == name


def test_all_bits_have_a_recipe_made_for_no_more_than_these() -> None:
    for weights, activations in itertools.product(range(2, 9), repeat=2):
        chosen = practical_recipe(Bits(weights, activations)).bits
        assert chosen.weights <= weights
        assert chosen.activations <= activations


def test_a_recipe_is_named_after_the_bits_it_is_made_for() -> None:
    known = practical_recipes()
    assert practical_names() == ("practical", *(recipe.name for recipe in known))
    assert [recipe.name for recipe in known] == [f"practical_{recipe.bits}" for recipe in known]


def test_a_budget_is_met_with_fewer_bits_so_it_gets_their_recipe() -> None:
    assert practical_recipe("w8a8", within_budget=True).name == "practical_w4a8"
    assert practical_recipe("w3a8", within_budget=True).name == "practical_w3a3"


def test_a_recipe_can_be_taken_by_its_name_whatever_the_bits() -> None:
    assert practical_recipe("w2a2", name="practical_w8a8").bits == Bits(8, 8)
    with pytest.raises(UnknownNameError, match="Did you mean 'practical_w4a"):
        practical_recipe("w2a2", name="practical_w4a")
    with pytest.raises(BitsError):
        practical_recipe("w1a8")


@pytest.mark.parametrize("recipe", practical_recipes(), ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("network", [None, SMALL, HUGE], ids=["unknown", "small", "huge"])
def test_every_recipe_is_valid_for_every_network(recipe: Any, network: NetworkCost | None) -> None:
    choice = practical_choice(recipe, network)
    plan = {"plan": {"bits": str(recipe.bits)}, "teacher": {"name": DIGITS}}
    parsed = Recipe.parse(choice.data | plan)
    assert "only_for" not in json.dumps(parsed.to_data())
    assert parsed.refine


def test_equalization_is_for_networks_with_depthwise_convolutions() -> None:
    found = practical_choice(practical_recipe("w8a8"), HUGE).data["refine"]
    assert found[0]["method"] == "equalize"
    for network in (SMALL, None):
        found = practical_choice(practical_recipe("w8a8"), network).data["refine"]
        assert [section["method"] for section in found] == ["calibrate", "bias_correction"]


@pytest.mark.parametrize("bits", ["w4a4", "w3a3", "w2a4", "w2a2"])
@pytest.mark.parametrize(("stored", "statistics"), [(True, "empirical"), (False, "analytic")])
def test_depthwise_networks_with_few_bits_are_trained_at_once(
    bits: str, stored: bool, statistics: str
) -> None:
    network, recipe = replace(SMALL, depthwise=True), practical_recipe(bits)
    chosen = practical_choice(recipe, network, stored=stored)
    found = chosen.data["refine"]
    assert [section["method"] for section in found] == ["calibrate", "bias_correction", "distill"]
    assert found[1]["statistics"] == statistics
    told = reason(bits, {"refine": found, "synthesize": recipe.synthesize}, chosen)
    assert "calibrate, then bias_correction, then distill (" in told
    assert "training the whole at once. " in told
    assert recipe.why not in told
    # About the same work as block by block.
    others = practical_choice(recipe, SMALL, stored=stored)
    assert [section["method"] for section in others.data["refine"]] == ["genie", "distill"]
    work = [work_of(data, 1.0, made=False) for data in ({"refine": found}, others.data)]
    assert 0.95 < work[0] / work[1] < 1.05


@pytest.mark.parametrize(
    ("network", "stored", "statistics"),
    [
        (SMALL, False, "analytic"),
        (HUGE, False, "analytic"),
        (None, False, "analytic"),
        (SMALL, True, "empirical"),
        (None, True, "empirical"),
        (replace(SMALL, batch_norm=False), True, "empirical"),
        # Noise, which needs no BatchNorm.
        (replace(SMALL, batch_norm=False), False, "empirical"),
    ],
)
def test_means_come_from_batch_norm_where_images_do(
    network: NetworkCost | None, stored: bool, statistics: str
) -> None:
    found = practical_choice(practical_recipe("w8a8"), network, stored=stored).data["refine"]
    corrections = [section for section in found if section["method"] == "bias_correction"]
    assert corrections == [{"method": "bias_correction", "statistics": statistics}]


def test_the_file_is_not_changed_by_what_is_made_of_it() -> None:
    practical_recipe("w4a4").synthesize["count"] = 3
    practical_choice(practical_recipe("w4a4")).data["refine"].clear()
    assert practical_recipe("w4a4").synthesize["count"] == 1024
    assert len(practical_choice(practical_recipe("w4a4")).data["refine"]) == 2


# By cost ------------------------------------------------------------------------------------------


def forwards(data: dict[str, Any]) -> float:
    """Forwards of one image that a run takes, summed up step by step."""
    images = data["synthesize"]
    config = synthesizers.get(images["method"]).config
    steps = images.get("steps", config().steps) / images.get("snapshots", 1)
    total = 2.0 * steps * (images["count"] + min(256, images["count"]))
    for section in data["refine"]:
        if "steps" not in section:
            continue
        batch = section.get("batch_size", refiners.get(section["method"]).config().batch_size)
        total += section["steps"] * batch * {"genie": 3, "distill": 4}[section["method"]]
    return total


def test_a_small_network_is_given_everything() -> None:
    for recipe in practical_recipes():
        choice = practical_choice(recipe, SMALL)
        assert choice.cut is not None
        assert choice.cut.share == 1
        assert choice.data["synthesize"] == recipe.synthesize
        assert choice.cut.work == pytest.approx(forwards(choice.data) * (40e6 + 200 * 190e3))


def test_a_large_network_is_given_what_stays_below_the_limit() -> None:
    recipe = practical_recipe("w4a8")
    choice = practical_choice(recipe, LARGE)
    assert choice.cut is not None
    assert choice.cut.image == 1.8e9 + 200 * 2.5e6
    assert 0.1 < choice.cut.share < 1
    assert choice.cut.work == pytest.approx(forwards(choice.data) * choice.cut.image)
    assert 0.6 * choice.cut.limit < choice.cut.work <= choice.cut.limit
    images, genie = choice.data["synthesize"], choice.data["refine"][0]
    assert images["count"] % 32 == 0
    assert images["count"] < recipe.synthesize["count"]
    assert images["steps"] < recipe.synthesize["steps"]
    assert genie["steps"] < recipe.refine[0]["steps"]
    assert genie["patience"] == recipe.refine[0]["patience"]


def test_a_dearer_network_never_gets_more() -> None:
    before = None
    for factor in (1, 4, 16, 64, 256, 1024):
        network = NetworkCost(40_000_000 * factor, 190_000 * factor, False, "cpu")
        now = forwards(practical_choice(practical_recipe("w2a2"), network).data)
        assert before is None or now <= before
        before = now


@pytest.mark.parametrize(
    ("depthwise", "left"),
    [(False, [("genie", 100)]), (True, [("calibrate", None), ("bias_correction", None)])],
)
def test_nothing_is_cut_below_its_least(
    depthwise: bool, left: list[tuple[str, int | None]]
) -> None:
    choice = practical_choice(practical_recipe("w2a2"), replace(HUGE, depthwise=depthwise))
    assert choice.cut is not None
    assert choice.cut.share == 0
    assert choice.cut.work > choice.cut.limit
    images = choice.data["synthesize"]
    assert (images["count"], images["steps"]) == (256, 25)
    # Training too short to help is left out, reconstruction is not.
    assert [(s["method"], s.get("steps")) for s in choice.data["refine"]] == left


def test_the_count_that_was_asked_for_is_not_cut() -> None:
    choice = practical_choice(practical_recipe("w4a8"), LARGE, count=2000)
    assert choice.data["synthesize"]["count"] == 2000
    assert choice.data["synthesize"]["steps"] < 200


def test_images_that_are_there_already_leave_more_time_for_steps() -> None:
    recipe = practical_recipe("w4a8")
    given, made = (practical_choice(recipe, LARGE, made=made) for made in (False, True))
    assert given.cut is not None
    assert made.cut is not None
    assert given.cut.share > made.cut.share
    assert given.data["refine"][0]["steps"] > made.data["refine"][0]["steps"]


def test_an_accelerator_is_given_more_than_a_processor() -> None:
    shares = []
    for device in ("cpu", "mps", "cuda"):
        network = NetworkCost(LARGE.products, LARGE.values, False, device)
        cut = practical_choice(practical_recipe("w4a4"), network).cut
        assert cut is not None
        shares.append(cut.share)
    assert shares == sorted(shares)
    assert shares[0] < shares[2] == 1


# With options -------------------------------------------------------------------------------------


def test_what_was_chosen_is_told_in_one_line() -> None:
    recipe, teacher = chosen_recipe({"name": DIGITS}, bits="w4a4")
    assert teacher is not None
    assert recipe.about is not None
    assert recipe.about.startswith(
        "Recipe for w4a4: practical_w4a4, which is genie (1,000 steps), then distill (200 steps), "
        "on 1,024 images of dffg, since "
    )
    assert recipe.about.endswith("--recipe NAME or --set KEY=VALUE changes that.")
    assert "\n" not in recipe.about
    assert Recipe.parse(recipe.to_data()) == recipe


def test_the_line_tells_what_is_run_and_not_what_was_chosen_first() -> None:
    changes = ["refine.genie.steps=70", "synthesize.count=30"]
    recipe, _ = chosen_recipe({"name": DIGITS}, bits="w4a8", settings=changes)
    assert recipe.about is not None
    assert "genie (70 steps), on 30 images of dffg" in recipe.about


def test_the_line_says_that_a_large_network_gets_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emptyset.job.from_options.cost_of", lambda _: LARGE)
    recipe, _ = chosen_recipe({"name": DIGITS}, bits="w4a8")
    assert "% of the usual work, since an image costs this network 2.3 billion" in (
        recipe.about or ""
    )
    monkeypatch.setattr("emptyset.job.from_options.cost_of", lambda _: HUGE)
    recipe, _ = chosen_recipe({"name": DIGITS}, bits="w4a8")
    assert "as little work as is sensible" in (recipe.about or "")


def test_options_come_on_top_of_the_choice() -> None:
    recipe, _ = chosen_recipe({"name": MOBILE}, bits="w8a8", count=40, plan="edges_8bit", seed=3)
    assert recipe.synthesize is not None
    assert (recipe.synthesize.count, recipe.plan.name, recipe.seed) == (40, "edges_8bit", 3)
    assert methods(recipe) == ["equalize", "calibrate", "bias_correction"]
    noise, _ = chosen_recipe({"name": DIGITS}, bits="w4a4", images="noise")
    assert noise.synthesize is not None
    assert (noise.synthesize.method, noise.synthesize.settings()) == ("noise", {})
    assert methods(noise) == ["genie", "distill"]


def test_a_file_of_images_counts_as_stored_and_a_method_does_not() -> None:
    for images, expected in ((str(train_images_path()), "empirical"), ("noise", "analytic")):
        recipe, _ = chosen_recipe({"name": DIGITS}, bits="w8a8", images=images)
        assert recipe.refine[-1].settings() == {"statistics": expected}


def test_real_images_are_as_many_as_made_ones_would_be() -> None:
    path = str(train_images_path())
    recipe, _ = chosen_recipe({"name": DIGITS}, bits="w4a8", images=path)
    assert (recipe.synthesize, recipe.images, recipe.count) == (None, path, 1024)
    assert methods(recipe) == ["genie"]
    assert f"on at most 1,024 images of {path}" in (recipe.about or "")
    fewer, _ = chosen_recipe({"name": DIGITS}, bits="w4a8", images=path, count=50)
    assert fewer.count == 50


def test_given_images_leave_a_large_network_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emptyset.job.from_options.cost_of", lambda _: LARGE)
    given, _ = chosen_recipe({"name": DIGITS}, bits="w4a8", images=str(train_images_path()))
    other, _ = chosen_recipe({"name": DIGITS}, bits="w4a8", images="noise")
    made, _ = chosen_recipe({"name": DIGITS}, bits="w4a8")
    steps = [recipe.refine[0].settings()["steps"] for recipe in (given, other, made)]
    assert steps[0] == steps[1] > steps[2]


def test_without_images_the_network_need_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("emptyset.job.from_options.load_from", never)
    recipe, teacher = chosen_recipe({"name": DIGITS}, bits="w4a4", images="none")
    assert teacher is None
    assert methods(recipe) == [section["method"] for section in DATA_FREE_REFINERS]
    assert "without any image: equalize, calibrate, bias_correction" in (recipe.about or "")
    # Nor is it for a setting that is wrong.
    with pytest.raises(RecipeError, match="Did you mean 'steps'"):
        chosen_recipe({"name": DIGITS}, settings=["synthesize.stepz=3"])


def test_a_network_that_cannot_be_run_is_left_to_the_stage_that_runs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("emptyset.job.from_options.cost_of", broken)
    recipe, teacher = chosen_recipe({"name": DIGITS}, bits="w4a4")
    assert teacher is not None
    assert recipe.about is None
    assert methods(recipe) == ["genie", "distill"]


def test_a_base_is_taken_as_it_is_and_says_nothing_of_a_choice() -> None:
    base = Recipe.parse({"teacher": {"name": MOBILE}, "about": "mine", "plan": {"bits": "w3a3"}})
    recipe = recipe_for({"name": DIGITS}, base=base, network=SMALL)
    assert recipe.about is None
    assert (recipe.plan.bits, methods(recipe)) == ("w3a3", ["calibrate"])


def test_a_named_recipe_brings_its_bits_unless_others_are_asked_for() -> None:
    recipe, _ = chosen_recipe({"name": DIGITS}, practical="practical_w4a4")
    assert recipe.plan.bits == "w4a4"
    recipe, _ = chosen_recipe({"name": DIGITS}, practical="practical_w8a8", bits="w4a8")
    assert (recipe.plan.bits, methods(recipe)) == ("w4a8", ["calibrate", "bias_correction"])


def test_a_practical_recipe_cannot_run_without_a_network() -> None:
    with pytest.raises(UnknownNameError, match="quantize TEACHER --recipe practical_w4a4"):
        find_recipe("practical_w4a4")

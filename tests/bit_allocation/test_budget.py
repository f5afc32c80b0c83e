"""A budget: what its text means, what a layer costs, what the limit is."""

from fractions import Fraction

import pytest

from emptyset.bit_allocation.budget import Budget, bit_operations, stored_bits
from emptyset.bit_allocation.layers import Layer, Option, checked_widths
from emptyset.errors import RecipeError

EDGE = Layer("edge", "conv2d", 10, 700, free_weights=False, options=(Option(8, None, 0.0),))
INNER = Layer("inner", "conv2d", 300, 1100, free_weights=True, options=(Option(3, 4, 0.0),))
OTHER = Layer("other", "linear", 70, 70, free_weights=True, options=(Option(8, 8, 0.0),))
LAYERS = [EDGE, INNER, OTHER]


@pytest.mark.parametrize(
    ("text", "kind", "amount", "relative"),
    [
        ("0.6", "size", Fraction(3, 5), True),
        ("0.6x", "size", Fraction(3, 5), True),
        (0.25, "size", Fraction(1, 4), True),
        (" 150 kB ", "size", Fraction(150_000), False),
        ("1.5MB", "size", Fraction(1_500_000), False),
        ("90000B", "size", Fraction(90_000), False),
        ("4.5bits", "average_bits", Fraction(9, 2), False),
        ("4 bits", "average_bits", Fraction(4), False),
        ("0.4xBOPs", "bit_operations", Fraction(2, 5), True),
        ("30GBOPs", "bit_operations", Fraction(30 * 10**9), False),
        ("2.5tbops", "bit_operations", Fraction(25 * 10**11), False),
        ("700BOPs", "bit_operations", Fraction(700), False),
    ],
)
def test_every_unit_is_read(text: str, kind: str, amount: Fraction, relative: bool) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount, budget.relative) == (kind, amount, relative)
    assert Budget.parse(str(budget)) == budget
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a number and a unit"),
        ("much", "expected a number and a unit"),
        ("-0.5", "expected a number and a unit"),
        ("nan", "expected a number and a unit"),
        ("1e-1", "expected a number and a unit"),
        ("3 apples", "unknown unit 'apples'"),
        ("4", "a share of the 8-bit size is more than 0 and at most 1"),
        ("0", "a share of the 8-bit size"),
        ("1.5xBOPs", "a share of the 8-bit operations"),
        ("0kB", "expected more than 0"),
        ("0bits", "expected more than 0"),
        ("8.5bits", "weights have at most 8 bits"),
    ],
)
def test_what_is_no_budget_is_explained(text: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        Budget.parse(text)
    assert "4.5bits" in str(caught.value), "an example shows how to write it"


def test_two_to_four_bits_take_four_in_the_file_and_the_rest_eight() -> None:
    assert [stored_bits(width) for width in range(2, 9)] == [4, 4, 4, 8, 8, 8, 8]


def test_costs_are_those_computed_by_hand() -> None:
    option = Option(3, 4, 0.0)
    assert Budget.parse("0.6").cost(INNER, option) == 300 * 4
    assert Budget.parse("4bits").cost(INNER, option) == 300 * 3
    assert Budget.parse("4bits").cost(EDGE, option) == 0
    assert Budget.parse("1GBOPs").cost(INNER, option) == 1100 * 3 * 4
    assert bit_operations(EDGE, Option(8, None, 0.0)) == 700 * 8 * 32


def test_limits_are_those_computed_by_hand() -> None:
    # 380 weights at 8 bits, 370 of them free; 1870 products.
    assert Budget.parse("0.6").limit(LAYERS) == 0.6 * 380 * 8
    assert Budget.parse("100B").limit(LAYERS) == 800
    assert Budget.parse("4.5bits").limit(LAYERS) == 4.5 * 370
    # The edge's input is float, at w8a8 too: 32 bits.
    assert Budget.parse("0.4xBOPs").limit(LAYERS) == int(0.4 * (700 * 256 + 1170 * 64))
    assert Budget.parse("5kBOPs").limit(LAYERS) == 5000


@pytest.mark.parametrize("text", ["0.6", "0.4xBOPs", "100B", "4.5bits", "5kBOPs"])
def test_a_limit_in_the_unit_of_its_budget_is_the_budget(text: str) -> None:
    budget = Budget.parse(text)
    value = budget.value(budget.limit(LAYERS), LAYERS)
    assert value == pytest.approx(float(budget.amount), rel=1e-4)


@pytest.mark.parametrize("text", ["0.6", "0.4xBOPs", "100B", "4.5bits", "5kBOPs"])
@pytest.mark.parametrize("cost", [1, 77, 1201, 2789])
def test_the_budget_named_in_a_message_allows_that_cost(text: str, cost: int) -> None:
    budget = Budget.parse(text)
    named = Budget.parse(budget.told(cost, LAYERS))
    assert named.kind == budget.kind
    assert named.limit(LAYERS) >= cost
    assert named.limit(LAYERS) <= cost * 1.01 + 38


def test_of_widths_stored_alike_only_the_widest_is_tried() -> None:
    assert Budget.parse("0.6").useful((2, 3, 4, 8)) == (4, 8)
    assert Budget.parse("90kB").useful((2, 3)) == (3,)
    assert Budget.parse("90kB").useful((2, 5, 6)) == (2, 6)
    assert Budget.parse("4bits").useful((2, 3, 4, 8)) == (2, 3, 4, 8)


def test_widths_are_sorted_and_checked() -> None:
    assert checked_widths("weights", [8, 2, 8]) == (2, 8)
    with pytest.raises(RecipeError, match=r"weights: expected bit widths from 2 to 8.*Got 9"):
        checked_widths("weights", [4, 9])
    with pytest.raises(RecipeError, match="Got an empty list"):
        checked_widths("activations", [])

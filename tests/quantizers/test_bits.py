"""Bit widths as people write them."""

import pytest

from emptyset.errors import BitsError, RecipeError
from emptyset.quantizers.bits import Bits


@pytest.mark.parametrize("text", ["w8a8", "w4a8", "w3a3", "w2a4"])
def test_text_and_widths_say_the_same(text: str) -> None:
    bits = Bits.parse(text)
    assert (bits.weights, bits.activations) == (int(text[1]), int(text[3]))
    assert str(bits) == text
    assert Bits.parse(bits) is bits


def test_case_and_spaces_do_not_matter() -> None:
    assert Bits.parse(" W4A8 ") == Bits(4, 8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("w0a4", "weights must have 2 to 8 bits. Got 0"),
        ("w1a4", "weights must have 2 to 8 bits. Got 1"),
        ("w4a99", "activations must have 2 to 8 bits. Got 99"),
        ("w4", "expected w<bits>a<bits>, weights first, got 'w4'"),
        ("a4w4", "got 'a4w4'"),
        ("8", "got '8'"),
        ("", "got ''"),
        ("w-4a4", "got 'w-4a4'"),
        ("w4a4x", "got 'w4a4x'"),
    ],
)
def test_bad_text_is_refused_with_what_to_write(text: str, reason: str) -> None:
    with pytest.raises(BitsError) as caught:
        Bits.parse(text)
    assert reason in str(caught.value)
    assert "Write for example w8a8" in str(caught.value)
    assert isinstance(caught.value, RecipeError)

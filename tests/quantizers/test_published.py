"""The printed formulas do what their table says is wrong; the corrected ones agree."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emptyset.quantizers.published import (
    CORRECTED,
    canonical,
    dffg,
    enhancing_diversity,
    genq,
    qimera,
)


def away_from_ties(scale: float, low_code: int, high_code: int) -> torch.Tensor:
    """Values from below the range to above it, none near the middle between two codes."""
    codes = torch.arange(low_code - 3, high_code + 4, dtype=torch.double)
    offsets = torch.tensor([-0.45, -0.2, 0.0, 0.3, 0.45], dtype=torch.double)
    return ((codes[:, None] + offsets) * scale).flatten()


@pytest.mark.parametrize("name", sorted(CORRECTED))
@given(bits=st.sampled_from([2, 3, 4, 8]), share=st.floats(0, 1), exponent=st.integers(-6, 3))
def test_corrected_forms_agree_where_the_lowest_value_is_a_whole_code(
    name: str, bits: int, share: float, exponent: int
) -> None:
    scale, low_code = 2.0**exponent, -round(share * (2**bits - 1))
    high_code = low_code + 2**bits - 1
    x = away_from_ties(scale, low_code, high_code)
    low, high = (torch.tensor(c * scale, dtype=torch.double) for c in (low_code, high_code))
    # By hand: the nearest whole code, kept in range.
    expected = (x / scale).round().clamp(low_code, high_code) * scale
    torch.testing.assert_close(canonical(x, low, high, bits), expected)
    torch.testing.assert_close(CORRECTED[name](x, low, high, bits), expected)


LOW, HIGH = torch.tensor(-1.0, dtype=torch.double), torch.tensor(2.75, dtype=torch.double)
# Its lowest value is -0.4 of a step: no whole code.
CROOKED_LOW, CROOKED_HIGH = (torch.tensor(v, dtype=torch.double) for v in (-0.1, 3.65))
ZERO = torch.zeros(1, dtype=torch.double)


def test_genq_as_printed_clips_half_of_the_range() -> None:
    top = genq(HIGH, LOW, HIGH, 4, printed=True).item()
    assert top == pytest.approx((8 - 4) * 0.25)
    assert genq(HIGH, LOW, HIGH, 4).item() == pytest.approx(2.75)


@pytest.mark.parametrize("form", [enhancing_diversity, dffg])
def test_a_zero_point_that_is_not_rounded_has_no_code_for_zero(form) -> None:
    assert abs(form(ZERO, CROOKED_LOW, CROOKED_HIGH, 4, printed=True).item()) > 0.05
    assert form(ZERO, CROOKED_LOW, CROOKED_HIGH, 4).item() == 0.0


def test_dffg_as_printed_leaves_its_range() -> None:
    far = torch.tensor(9.0, dtype=torch.double)
    assert dffg(far, LOW, HIGH, 4, printed=True).item() == pytest.approx(9.0)
    assert dffg(far, LOW, HIGH, 4).item() == pytest.approx(2.75)


def test_qimera_as_printed_uses_half_of_the_codes() -> None:
    x = torch.linspace(-1.0, 2.75, 2001, dtype=torch.double)
    assert len(qimera(x, LOW, HIGH, 4, printed=True).unique()) == 9  # codes -8 .. 0
    assert len(qimera(x, LOW, HIGH, 4).unique()) == 16

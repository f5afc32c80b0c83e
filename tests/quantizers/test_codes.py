"""Packing loses nothing and refuses what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emptyset.errors import BitsError
from emptyset.quantizers.codes import pack, unpack


@st.composite
def some_codes(draw: st.DrawFn) -> tuple[torch.Tensor, int, bool]:
    bits, signed = draw(st.sampled_from([2, 4, 8])), draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    seed = draw(st.integers(0, 2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, low + 2**bits, shape, generator=generator), bits, signed


@given(some_codes())
def test_unpacking_gives_back_what_was_packed(case: tuple[torch.Tensor, int, bool]) -> None:
    codes, bits, signed = case
    packed = pack(codes, bits)
    assert len(packed) == -(-codes.numel() * bits // 8)
    back = unpack(packed, bits, tuple(codes.shape), signed=signed)
    assert back.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(back.long(), codes)


def test_the_first_code_lies_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([1, 2, 3, 0, 2]), 2).tolist() == [0b00111001, 0b10]
    assert pack(torch.tensor([-1, -8]), 4).tolist() == [0x8F]


@pytest.mark.parametrize(("code", "bits"), [(4, 2), (16, 4), (-9, 4), (-129, 8), (256, 8)])
def test_a_code_that_does_not_fit_is_refused(code: int, bits: int) -> None:
    with pytest.raises(BitsError, match=f"do not fit into {bits} bits"):
        pack(torch.tensor([0, code]), bits)


def test_a_width_without_packed_form_is_refused() -> None:
    with pytest.raises(BitsError, match=r"2, 4 or 8\. Got 3"):
        pack(torch.tensor([1]), 3)

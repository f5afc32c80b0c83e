"""Which hardware bfloat16 is for."""

import pytest
import torch

from emptyset.inversion.compilation import has_fast_bfloat16


@pytest.mark.parametrize("amx", [True, False])
def test_a_processor_is_faster_in_bfloat16_with_amx_only(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    # Not what decides: products by this instruction alone are slower.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert has_fast_bfloat16(torch.device("cpu")) is amx
    assert not has_fast_bfloat16(torch.device("mps"))

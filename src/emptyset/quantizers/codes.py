"""Integer codes in memory: one byte each, or packed two (4 bits) or four (2 bits) to the byte."""

import torch
from torch import Tensor

from emptyset.errors import BitsError

PACKED_BITS = (2, 4)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes to bytes, the lowest bits first; the last byte is filled with zeros.

    Args:
        codes: Any shape, whole numbers in ``-2^(bits-1) .. 2^bits - 1`` (signed or unsigned).
        bits: 2 or 4 (packed), or 8 (one byte each).

    Returns:
        ``(ceil(codes * bits / 8),)`` uint8.

    Raises:
        BitsError: If a code does not fit, or ``bits`` has no packed form.
    """
    if bits not in (*PACKED_BITS, 8):
        raise BitsError(f"pack: bits must be 2, 4 or 8. Got {bits}.")
    flat = codes.reshape(-1).to(torch.int16)
    low, high = -(2 ** (bits - 1)), 2**bits - 1
    if flat.numel() and (int(flat.min()) < low or int(flat.max()) > high):
        raise BitsError(
            f"pack: codes {int(flat.min())}..{int(flat.max())} do not fit into {bits} bits "
            f"({low}..{high})."
        )
    flat = torch.bitwise_and(flat, 2**bits - 1).to(torch.uint8)
    per_byte = 8 // bits
    missing = -len(flat) % per_byte
    flat = torch.cat([flat, flat.new_zeros(missing)]).view(-1, per_byte)
    packed = torch.zeros(len(flat), dtype=torch.uint8)
    for position in range(per_byte):
        packed |= flat[:, position] << (bits * position)
    return packed


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...], *, signed: bool) -> Tensor:
    """The codes that ``pack`` packed.

    Args:
        packed: ``(bytes,)`` uint8.
        bits: 2, 4 or 8.
        shape: Shape of the codes.
        signed: Whether the codes were signed (two's complement).

    Returns:
        int8 (signed) or uint8 codes of ``shape``.
    """
    per_byte, mask = 8 // bits, 2**bits - 1
    parts = [(packed >> (bits * position)) & mask for position in range(per_byte)]
    count = int(torch.tensor(shape).prod()) if shape else 1
    flat = torch.stack(parts, dim=1).reshape(-1)[:count]
    if not signed:
        return flat.reshape(shape)
    codes = flat.to(torch.int16)
    return torch.where(codes > mask // 2, codes - mask - 1, codes).to(torch.int8).reshape(shape)

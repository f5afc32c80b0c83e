"""Small PNG files without an imaging library, for pictures inside the page."""

import base64
import struct
import zlib

import torch
from torch import Tensor


def png_bytes(pixels: Tensor) -> bytes:
    """An 8-bit PNG.

    Args:
        pixels: ``(C, H, W)`` in 0..1, C = 1 (grey) or 3 (RGB).
    """
    channels, height, width = pixels.shape
    colour = {1: 0, 3: 2}[channels]
    codes = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    rows = codes.permute(1, 2, 0).reshape(height, width * channels).numpy()
    # Every row starts with its filter type; 0 means stored as it is.
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(raw, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def data_address(pixels: Tensor) -> str:
    """The picture as a ``data:`` address.

    Args:
        pixels: ``(C, H, W)`` in 0..1; other channel counts than 1 and 3 show the first channel.
    """
    if pixels.shape[0] not in (1, 3):
        pixels = pixels[:1]
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode("ascii")

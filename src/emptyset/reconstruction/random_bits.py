"""Random yes or no for every element of a batch, from one random word per 32 images.

Bit k of a word decides for image k: drawing 0.5-masks element by element would take a third of the
time of a whole step. Words are drawn for many steps at once, from a generator that is seeded per
piece of work, so that a step's bits do not depend on how it was reached.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 32
# Words drawn at once [8 MB].
_CHUNK = 1 << 21
_FINEST = 8


class RandomBits:
    """Words for a number of tensors and steps.

    Attributes:
        words: ``(steps in a chunk, words in a step)`` int32; redrawn in place, so that what reads
            it (compiled, captured) always finds it at the same place.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        *,
        kept: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """Room for one chunk; nothing is drawn yet.

        Args:
            shapes: Shape of each tensor that bits are for; images along the first axis. A scalar
                of the network, quantized like an activation, has none.
            kept: Probability of yes, rounded to 1/256.
            seed: Of everything drawn.
            device: Where the bits are used.
        """
        self._seed, self._kept = seed, round(kept * (1 << _FINEST))
        total = sum(word_count(shape) for shape in shapes)
        self.steps = max(1, min(64, _CHUNK // max(total, 1)))
        self.words = torch.zeros(self.steps, total, dtype=torch.int32, device=device)
        self._drawn = -1

    def prepare(self, step: int) -> None:
        """Make sure that the words of this step are there, at row ``step % steps``."""
        chunk = step // self.steps
        if chunk == self._drawn or self.words.numel() == 0:
            return
        generator = torch.Generator().manual_seed(self._seed + chunk)
        self.words.copy_(self._with_probability(generator))
        self._drawn = chunk

    def _with_probability(self, generator: torch.Generator) -> Tensor:
        """Words whose bits are 1 with probability ``kept / 256``.

        The binary digits of the probability, from the last to the first: 1 means "or a fair bit",
        0 means "and a fair bit". A half takes one fair word, finer probabilities up to eight.
        """
        kept, digits = self._kept, _FINEST
        if kept in (0, 1 << _FINEST):
            return torch.full_like(self.words, -1 if kept else 0, device="cpu")
        while kept % 2 == 0:
            kept, digits = kept // 2, digits - 1
        found = torch.zeros(self.words.shape, dtype=torch.int32)
        for digit in range(digits):
            fair = self._fair(generator)
            found = found | fair if kept >> digit & 1 else found & fair
        return found

    def _fair(self, generator: torch.Generator) -> Tensor:
        """int32 words of 32 fair bits, two drawn at once."""
        count = self.words.numel()
        drawn = torch.empty((count + 1) // 2, dtype=torch.int64)
        drawn.random_(-(2**63), None, generator=generator)
        return drawn.view(torch.int32)[:count].view(self.words.shape)


def word_count(shape: tuple[int, ...]) -> int:
    """Words for one tensor of this shape; a scalar takes one."""
    images, *rest = shape or (1,)
    return -(-images // BITS) * math.prod(rest)


def bits_of(words: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One tensor's bits, int32 0 and 1.

    Args:
        words: ``(word_count(shape),)`` int32.
        shape: What the bits are for; four axes lie channels last.
    """
    count, *rest = shape or (1,)
    groups = -(-count // BITS)
    if len(shape) == 4:
        channels, height, width = rest
        planes = words.view(groups, 1, height, width, channels).permute(0, 1, 4, 2, 3)
    else:
        planes = words.view(groups, 1, *rest)
    places = torch.arange(min(count, BITS), dtype=torch.int32, device=words.device)
    bits = (planes >> places.view(1, -1, *[1] * len(rest))) & 1
    return bits.reshape(-1, *rest)[:count].reshape(shape)

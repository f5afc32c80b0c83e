"""A histogram of a stream whose range is not known beforehand; no count is ever lost.

The first tensor decides the bins: its smallest to its largest value, exactly. When a later value
lies outside, the bins grow by a power of two and move by whole old bins, so that every old bin
falls into one new bin. The resolution is then at worst half of the bins over the range.
"""

import torch
from torch import Tensor

from emptyset.errors import NotCalibratedError

_SLICE = 1 << 20


class Histogram:
    """Counts and sums per bin, for each of ``C`` rows on its own."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._state: dict[str, Tensor] = {}

    @property
    def empty(self) -> bool:
        """True before the first update."""
        return not self._state

    def update(self, x_Cn: Tensor) -> None:
        """Count the values of every row.

        Args:
            x_Cn: ``(C, n)`` [units of x], finite.

        Raises:
            NotCalibratedError: If a value is NaN or infinite.
        """
        low, high = (v.double() for v in torch.aminmax(x_Cn, dim=1))
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            raise NotCalibratedError(
                "No range can be set: the observed values hold NaN or infinity. Look for them "
                "in the images and in the teacher's weights."
            )
        if self.empty:
            self._start(low, high)
        else:
            self._grow(low, high)
        self._count(x_Cn)

    def points(self) -> tuple[Tensor, Tensor]:
        """One value per bin, the mean of what fell into it, and how many did.

        Returns:
            values ``(C, bins)`` [units of x] and counts ``(C, bins)``, double.
        """
        counts, sums = self._state["counts"], self._state["sums"]
        return torch.where(counts > 0, sums / counts.clamp(min=1), self._centres()), counts

    def ends(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value seen, ``(C,)`` each [units of x], double."""
        return self._state["smallest"], self._state["largest"]

    def quantile(self, share: float) -> Tensor:
        """The value below which ``share`` of each row lies, ``(C,)``, to within one bin."""
        counts = self._state["counts"]
        wanted = share * counts.sum(dim=1, keepdim=True)
        reached = counts.cumsum(dim=1)
        index = torch.searchsorted(reached, wanted).clamp(max=self.bins - 1)
        before = (reached - counts).gather(1, index)
        inside = counts.gather(1, index)
        part = ((wanted - before) / inside.clamp(min=1)).clamp(0, 1)
        value = self._state["start"] + (index + part)[:, 0] * self._state["width"]
        return value.clamp(self._state["smallest"], self._state["largest"])

    def state(self) -> dict[str, Tensor]:
        """All counts, sums and edges."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._state = {name: value.clone() for name, value in state.items()}

    def _centres(self) -> Tensor:
        steps = torch.arange(self.bins, dtype=torch.double, device=self._state["start"].device)
        return self._state["start"][:, None] + (steps + 0.5) * self._state["width"][:, None]

    def _start(self, low: Tensor, high: Tensor) -> None:
        # A constant row still needs bins of some width; they grow as soon as they must.
        smallest_width = torch.maximum(low.abs(), high.abs()) * 2.0**-20 + 2.0**-60
        width = torch.maximum((high - low) / self.bins, smallest_width / self.bins)
        zeros = torch.zeros(len(low), self.bins, dtype=torch.double, device=low.device)
        self._state = {
            "start": low,
            "width": width,
            "smallest": low,
            "largest": high,
            "counts": zeros,
            "sums": zeros.clone(),
        }

    def _grow(self, low: Tensor, high: Tensor) -> None:
        state = self._state
        state["smallest"] = torch.minimum(state["smallest"], low)
        state["largest"] = torch.maximum(state["largest"], high)
        start, width = state["start"], state["width"]
        below = ((start - low) / width).ceil().clamp(min=0)
        above = ((high - start) / width).ceil().clamp(min=self.bins)
        if bool(((below == 0) & (above == self.bins)).all()):
            return
        factor = 2.0 ** ((below + above) / self.bins).log2().ceil()
        old = torch.arange(self.bins, dtype=torch.double, device=start.device)
        # Never past the last bin: below + bins <= below + above <= factor * bins.
        new = ((old + below[:, None]) / factor[:, None]).floor().long()
        for name in ("counts", "sums"):
            state[name] = torch.zeros_like(state[name]).scatter_add_(1, new, state[name])
        state["start"], state["width"] = start - below * width, width * factor

    def _count(self, x_Cn: Tensor) -> None:
        # Single precision and int32: four times as fast, and at most 0.001 of a bin off.
        start = self._state["start"].float()[:, None]
        bins_per_unit = (1.0 / self._state["width"]).float()[:, None]
        rows = len(x_Cn)
        offsets = torch.arange(rows, dtype=torch.int32, device=x_Cn.device)[:, None] * self.bins
        shape, size = (rows, self.bins), rows * self.bins
        for part in torch.split(x_Cn, max(1, _SLICE // rows), dim=1):
            bin_of = (part.float() - start).mul_(bins_per_unit).clamp_(0, self.bins - 1).int()
            index = bin_of.add_(offsets).flatten()
            values = part.double().flatten()
            self._state["counts"] += torch.bincount(index, minlength=size).view(shape)
            self._state["sums"] += torch.bincount(index, values, minlength=size).view(shape)

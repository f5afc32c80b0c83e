"""ZAQ's activation range: the smallest and the largest value that was trained on."""

import torch

from emptyset.quantizers.affine import PerTensorAffineFakeQuantizer
from emptyset.quantizers.learned_step import ExtremeRange


def quantizer() -> PerTensorAffineFakeQuantizer:
    return PerTensorAffineFakeQuantizer(
        dtype=torch.uint8, quant_min=0, quant_max=15, qscheme=torch.per_tensor_affine
    )


def batches() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [k * torch.randn(3, 4, 5, generator=random) for k in (1.0, 3.0, 0.5)]


def test_the_grid_spans_everything_seen_while_tracking() -> None:
    own = quantizer()
    learner = ExtremeRange(own)
    seen = []
    for x in batches():
        learner(x)
        seen += x.flatten().tolist()
        low, high = own.low_high()
        # A grid of whole steps with a zero: within half a step of both ends.
        assert abs(float(low) - min(seen)) <= 0.51 * float(own.scale)
        assert abs(float(high) - max(seen)) <= 0.51 * float(own.scale)
    before = own.scale.clone()
    learner.tracking = False
    learner(torch.full((2, 3), 1e3))
    assert torch.equal(own.scale, before)


def test_from_a_kept_state_it_goes_on() -> None:
    whole, first, second = (ExtremeRange(quantizer()) for _ in range(3))
    for x in batches():
        whole(x)
    for x in batches()[:2]:
        first(x)
    assert ExtremeRange(quantizer()).state() == {}
    second.load_state({k: v.clone() for k, v in first.state().items()})
    second(batches()[2])
    assert torch.equal(second.state()["ends"], whole.state()["ends"])


def test_the_gradient_passes_unchanged() -> None:
    x = torch.tensor([-2.0, 0.1, 5.0], requires_grad=True)
    learner = ExtremeRange(quantizer())
    learner(torch.tensor([-1.0, 1.0]))
    learner.tracking = False
    (gradient,) = torch.autograd.grad(learner(x).sum(), [x])
    assert gradient.tolist() == [1.0, 1.0, 1.0]

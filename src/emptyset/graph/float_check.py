"""Proof that a student without quantization is its teacher.

Everything that is measured against the float network is wrong where capture or folding changed what
it computes, and no later step can see it: the file is compared with the student.
"""

import copy
from typing import Any

import torch
from torch import fx

from emptyset.errors import CaptureError, UnsupportedModelError
from emptyset.teachers.teacher import Teacher

# Of the largest logit; folding rounds weights anew, which gives a few 1e-6.
LARGEST_GAP = 1e-4
# Accelerators may multiply with fewer bits by themselves (TF32 has 10). An estimate.
LARGEST_GAP_ELSEWHERE = 3e-2
SEED = 0


@torch.no_grad()
def require_teachers_logits(program: fx.GraphModule, teacher: Teacher) -> None:
    """Compare a prepared program, its quantizers switched off, with the network on two images.

    Args:
        program: Prepared, in float mode.
        teacher: The network it was captured from; untouched.

    Raises:
        CaptureError: If the logits differ by more than 1e-4 of the largest, elsewhere than on a
            CPU 3e-2.
        UnsupportedModelError: If the network gives no single tensor.
    """
    example = teacher.example()
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(example.shape, generator=generator).to(example.device)
    module = copy.deepcopy(teacher.module).eval()
    expected = _seeded(module, images)
    if not isinstance(expected, torch.Tensor):
        raise UnsupportedModelError(
            f"{teacher.name}: expected logits as one tensor (N, K), got {type(expected).__name__}. "
            "Wrap the network so that its forward returns the logits alone."
        )
    found = _seeded(program, images)
    # Where the network itself gives NaN or infinity, there is nothing to compare.
    gap = torch.where(expected.isfinite(), found - expected, 0.0).abs().max()
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max()
    allowed = LARGEST_GAP if example.device.type == "cpu" else LARGEST_GAP_ELSEWHERE
    if bool(gap <= allowed * largest):
        return
    raise CaptureError(
        f"{teacher.name}: before anything is quantized, the student does not compute what "
        f"{type(teacher.module).__name__} does: the logits of two noise images differ by "
        f"{float(gap / largest):.1e} of the largest ({allowed:.0e} is allowed). This is a "
        "defect of emptyset, not of the network; please report it with the network's code. Until "
        "it is mended, plan 'every_layer' with batch_norm 'frozen' may do: it changes least."
    )


def _seeded(network: torch.nn.Module, images: torch.Tensor) -> Any:
    """What the network gives; a network that draws numbers draws the same ones each time."""
    on_gpu = images.device.type == "cuda"
    with torch.random.fork_rng([images.device] if on_gpu else []):
        # `torch.manual_seed` would seed every device.
        torch.default_generator.manual_seed(SEED)
        if on_gpu:
            torch.cuda.manual_seed(SEED)
        return network(images.clone())  # a network may write over what it reads

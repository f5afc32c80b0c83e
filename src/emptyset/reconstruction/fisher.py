"""How much the teacher's answer depends on each output of a block, as BRECQ weighs distances.

    g = |∂ KL(p_float ‖ p_quantized) / ∂ y| + 1

p_quantized: the network quantized up to and including the block, float behind it; the divergence is
the mean over a step's batch, as released.

Source: BRECQ, Li et al. 2021, arXiv:2102.05426, sec. 3.2 and the released code.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from emptyset.graph.blocks import Block
from emptyset.graph.student import Student
from emptyset.reconstruction.caches import Rows
from emptyset.reconstruction.passes import parts


def write_sensitivity(
    student: Student, behind: Sequence[Block], quantized: Rows, target: Rows, into: Rows, size: int
) -> None:
    """Write ``g`` for every image.

    Args:
        student: Its float mode is what stands behind the block.
        behind: The blocks that follow.
        quantized: The block's outputs, quantized up to and including it.
        target: Its float outputs.
        into: Shaped as both.
        size: Images in a step, if there are as many: at once, and in the divergence's mean.
    """
    size = min(size, len(target))
    with student.float_mode():
        for start, stop in parts(len(target), size):
            out = quantized.read(start, stop).detach().requires_grad_()
            with torch.no_grad():
                wanted = F.log_softmax(_logits(behind, target.read(start, stop)), dim=1)
            with torch.enable_grad():
                found = F.log_softmax(_logits(behind, out), dim=1)
                divergence = F.kl_div(found, wanted, reduction="sum", log_target=True) / size
                (gradient,) = torch.autograd.grad(divergence, [out])
            into.write(start, gradient.abs() + 1.0)


def _logits(behind: Sequence[Block], x: Tensor) -> Tensor:
    for block in behind:
        x = block(x)
    return x.flatten(1)

"""How much the answer depends on an output: against finite differences of the divergence."""

import pytest
import torch

from emptyset.graph.blocks import find_blocks
from emptyset.images.image_set import ImageSet
from emptyset.reconstruction.caches import CacheRoom, Rows
from emptyset.reconstruction.fisher import write_sensitivity
from emptyset.teachers.teacher import Teacher


def rows_of(values: torch.Tensor) -> Rows:
    room = CacheRoom(1 << 24, half=False, device=torch.device("cpu"))
    rows = room.rows(tuple(values.shape))
    rows.write(0, values)
    return rows


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize(("size", "in_a_step"), [(4, 4), (16, 7)])
def test_it_is_the_slope_of_the_divergence_plus_1(
    size: int, in_a_step: int, number: int, teacher: Teacher, student_of, images: ImageSet
) -> None:
    """Of its mean over the images of a step: where there are fewer than its size, over all."""
    student = student_of(teacher)
    blocks = find_blocks(student)
    x = images.images[:7]
    with torch.no_grad(), student.float_mode():
        for block in blocks[: number + 1]:
            x = block(x)
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    quantized = x + noise
    into = rows_of(quantized)
    write_sensitivity(student, blocks[number + 1 :], into, rows_of(x), into, size)
    found = into.read(0, 7).double()

    def divergences(out: torch.Tensor) -> torch.Tensor:
        """KL(float ‖ quantized) of each image, in double, behind the teacher's own layers."""
        module = teacher.module.double()
        probabilities = []
        for values in (x.double(), out):
            if number == 1:
                for unit in list(module.units)[1:]:
                    values = torch.relu(values + unit(values))
                values = module.linear(values.mean((2, 3)))
            probabilities.append(values.softmax(1))
        p, q = probabilities
        return (p * (p.log() - q.log())).sum(1) / in_a_step

    out, step = quantized.double(), 1e-5
    places = torch.randint(out[0].numel(), (12,), generator=torch.Generator().manual_seed(1))
    for place in places.tolist():
        up, down = (out.clone() for _ in range(2))
        up.flatten(1)[:, place] += step
        down.flatten(1)[:, place] -= step
        slope = (divergences(up) - divergences(down)) / (2 * step)
        expected = slope.abs() + 1
        torch.testing.assert_close(found.flatten(1)[:, place], expected, atol=2e-4, rtol=1e-3)

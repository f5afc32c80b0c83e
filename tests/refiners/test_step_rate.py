"""How fast learned steps move beside weights."""

import pytest
import torch
from learning_beside_source import BITS, taught
from small_teachers import two_convolutions

from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.quantizers.bits import Bits
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import DistillConfig


@pytest.mark.parametrize(("given", "expected"), [({}, 4e-3), ({"step_learning_rate": 0.03}, 0.03)])
def test_steps_move_ten_times_as_fast_as_weights_unless_asked(
    given: dict[str, float], expected: float
) -> None:
    """Adam's first update moves whatever has a gradient by the rate itself."""
    teacher = two_convolutions()
    random = torch.Generator().manual_seed(1)
    images = ImageSet(torch.randn(13, *teacher.input.shape, generator=random))
    student = prepare(teacher, BITS, plan="every_layer")
    Calibrate(CalibrateConfig()).refine(student, images)
    before = {name: quantizer.scale.clone() for name, quantizer in student.quantizers.items()}
    taught(teacher, images, student=student, steps=1, learning_rate=4e-4, **given)
    for path, value in student.originals.items():
        moved = (student.program.get_parameter(path) - value).abs().max()
        assert float(moved) == pytest.approx(4e-4, rel=0.01), path
    for name, quantizer in student.quantizers.items():
        moved = (quantizer.scale / before[name]).log().abs().max()
        assert float(moved) == pytest.approx(expected, rel=0.01), name


def test_without_a_rate_of_their_own_steps_follow_that_of_the_bits() -> None:
    found = [DistillConfig().course(Bits.parse(bits)) for bits in ("w5a6", "w4a4", "w3a4")]
    assert [course.step_learning_rate for course in found] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert DistillConfig(step_learning_rate=0.0).course(BITS).step_learning_rate == 0.0

"""Who is the best student so far: judged again on the images of the moment, the later of equals."""

import torch
from learning_beside_source import make
from small_teachers import two_convolutions

from emptyset.graph.originals import trainable
from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.refiners.best_student import BestStudent
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig

# The class that the student always names, how many images the teacher sees as which class, and
# which look is the best one then.
LOOKS = [
    (0, (7, 3, 1, 0, 0), 0),
    # Fewer than before, of images on which the first would name fewer still.
    (1, (2, 4, 3, 1, 1), 1),
    (2, (3, 5, 2, 0, 1), 1),
    (3, (0, 3, 2, 3, 3), 3),
    (4, (1, 2, 0, 5, 3), 3),
]


def test_the_best_is_judged_again_on_every_looks_images_and_gives_way_to_an_equal() -> None:
    teacher = two_convolutions(every_class=True)
    pool = torch.randn(300, *teacher.input.shape, generator=torch.Generator().manual_seed(1))
    seen_as = teacher.module(pool).argmax(1)
    student = prepare(teacher, "w4a4", plan="every_layer")
    Calibrate(CalibrateConfig()).refine(student, ImageSet(pool[:13]))
    parameters = trainable(student.program)
    source = make("gdfq", teacher)
    best = BestStudent(student, parameters, source, held_out=11, seed=5, evaluate=None)
    for number, (named, counts, expected) in enumerate(LOOKS):
        images = torch.cat([pool[seen_as == k][:count] for k, count in enumerate(counts)])
        source.drawn = lambda count, *, seed, images=images: ImageSet(images[:count])
        with torch.no_grad():
            parameters["linear.weight"].zero_()
            parameters["linear.bias"].copy_(2.0 * torch.eye(5)[named])
        best.look(3 * number)
        assert parameters["linear.bias"].argmax() == named
        record = best.record("best")
        assert record is not None
        assert record["last"] == {"update": 3 * number, "score": counts[named] / 11}
        then = LOOKS[expected]
        assert record["best"] == {"update": 3 * expected, "score": then[1][then[0]] / 11}
        assert best.best is not None
        assert best.best["parameter|linear.bias"].argmax() == then[0]

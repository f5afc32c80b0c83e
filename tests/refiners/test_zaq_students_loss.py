"""ZAQ's student: what it learns from, and its update, by torch's own parts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from feature_relations import distance_of_relations
from learning_beside_source import BITS, PUBLISHED, batches_of, make, moves, pulls
from small_teachers import stages_of, two_convolutions
from torch import Tensor

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import StoredImages
from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.training import Training
from emptyset.teachers.teacher import Teacher

BATCH = 10


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


def stored(teacher: Teacher) -> StoredImages:
    random = torch.Generator().manual_seed(1)
    return StoredImages(ImageSet(torch.randn(19, *teacher.input.shape, generator=random)), seed=4)


def said_by_student(student: Student, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the map before each change of size as the next layer reads it."""
    maps: list[Tensor] = []
    handles = [
        quantizer.register_forward_hook(lambda _, __, map_read: maps.append(map_read))
        for quantizer in student.quantizers.values()
        if quantizer.axis is None
    ]
    logits = student(images)
    for handle in handles:
        handle.remove()
    return logits, maps


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("zaq", {}),
        ("zaq", {"logit_distance": 0.7, "relations": 30.0}),
        ("qimera", {"cross_entropy": 0.1}),
        ("stored", {}),
    ],
)
def test_zaqs_update_is_the_published_one(
    source: str, weights: dict[str, float], teacher: Teacher
) -> None:
    """SGD with plain momentum on the distance of logits and of the feature maps' relations."""
    based: dict[str, Any] = {"base": "zaq", "student_steps": 3} if source == "qimera" else {}
    shown = stored(teacher) if source == "stored" else make(source, teacher, **based)
    student = prepare(teacher, BITS, **PUBLISHED)
    config = DistillConfig(
        preset="zaq", steps=40, batch_size=BATCH, learning_rate=0.01, precision="float32", **weights
    )
    course = config.course(BITS, None if source == "stored" else shown)
    training = Training(student, shown, course, 0)
    given = batches_of(shown)
    buffers = dict.fromkeys(training._parameters, torch.zeros(()))
    with training._learning():
        for number in (0, 1):
            moved = moves(training, number)
            ours, our_maps = said_by_student(student, given[number].images)
            theirs, their_maps = stages_of(teacher.module, given[number].images)
            loss = weights.get("logit_distance", 1.0) * (ours - theirs).abs().mean()
            apart = distance_of_relations(our_maps, their_maps)
            loss = loss + weights.get("relations", 1.0) * apart
            if source == "qimera":
                shares = given[number].targets
                assert shares.shape == (BATCH, 5)
                loss = loss - 0.1 * (shares * F.log_softmax(ours, 1)).sum(1).mean()
            for path, pull in pulls(training, loss, 5e-4).items():
                buffers[path] = 0.9 * buffers[path] + pull
                expected = -0.01 * buffers[path]
                assert expected.abs().max() > 1e-4
                torch.testing.assert_close(moved[path], expected, atol=1e-6, rtol=1e-3, msg=path)

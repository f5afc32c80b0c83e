"""Preset `published`: HAST's update, ranges as released, and where its rates mean nothing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from killed_run import Disk, KilledError
from residual_teacher import residual_teacher
from torch import Tensor

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.graph.originals import trainable
from emptyset.graph.residual_bodies import Tapped, residual_bodies
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import Batch, ImageSet
from emptyset.images.image_source import StoredImages
from emptyset.monitor import SILENT
from emptyset.quantizers.bits import Bits
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.refiners.training import Training
from emptyset.registry import sources
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

PUBLISHED = {"plan": "every_layer", "batch_norm": "frozen"}
BITS = Bits.parse("w3a4")
# Batches: 4 of 151 epochs are warm-up.
STEPS, WARM_UP, SHORT = 151, 4, 12


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return residual_teacher()


@pytest.fixture(scope="module")
def images(teacher: Teacher) -> ImageSet:
    pixels = torch.randn(40, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    return ImageSet(pixels, teacher.module(pixels).argmax(1))


# HAST ------------------------------------------------------------------------------------------


class Watched(StoredImages):
    """Remembers its last batch."""

    def next_batch(self, size: int) -> Batch:
        self.last = super().next_batch(size)
        return self.last


def body_of(teacher: Teacher, images: Tensor) -> Tensor:
    """What the teacher's residual unit adds to its shortcut."""
    net = teacher.module
    return net.body_norm(net.body(F.relu(net.norm(net.stem(images)))))


def attention(body: Tensor) -> Tensor:
    strength = (body * body).sum((2, 3)) / (body.shape[2] * body.shape[3])
    return strength / (strength * strength).sum(1, keepdim=True).sqrt()


def test_hasts_update_is_the_published_one(teacher: Teacher, images: ImageSet) -> None:
    """``L(x) + L(x + ε sign ∂L/∂x)``, L = 20 T² KL + λ FA, by torch's own parts."""
    size, weight, rate, batch = 0.2, 30.0, 1e-4, 12
    student, source = prepare(teacher, BITS, **PUBLISHED), Watched(images, seed=3)
    config = DistillConfig(
        preset="published", steps=STEPS, batch_size=batch, learning_rate=rate, precision="float32",
        augmentation="none", cross_entropy=0.0, feature_attention=weight, perturbation=size,
    )  # fmt: skip
    training = Training(student, source, config.course(BITS), 0)
    parameters = trainable(student.program)
    tapped = Tapped(student.program, residual_bodies(student.program))

    def loss(shown: Tensor) -> Tensor:
        (ours, (body,)), theirs = tapped(shown), teacher.module(shown)
        p = F.softmax(theirs / 20, 1)
        divergence = (p * (p.log() - F.log_softmax(ours / 20, 1))).sum() / batch
        distance = (attention(body) - attention(body_of(teacher, shown))).square().mean()
        return 20 * 400 * divergence + weight * distance

    with training._learning():
        for number in range(WARM_UP):
            training._update(number)
        before = {k: v.detach().clone() for k, v in parameters.items()}
        training._update(WARM_UP)
        after = {k: v.detach().clone() for k, v in parameters.items()}
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(before[key])
        training._learners.publish()
        x = source.last.images.clone().requires_grad_()
        (uphill,) = torch.autograd.grad(loss(x), [x])
        harder = x.detach() + size * uphill.sign()
        gradients = torch.autograd.grad(loss(x.detach()) + loss(harder), list(parameters.values()))
    for (key, value), gradient in zip(before.items(), gradients, strict=True):
        decayed = gradient + 1e-4 * value
        # Its first update: the buffer is the gradient.
        moved = -rate * (decayed + 0.9 * decayed)
        assert moved.abs().max() > 0
        torch.testing.assert_close(after[key] - value, moved, atol=1e-6, rtol=2e-3, msg=key)


# Ranges of a generator -------------------------------------------------------------------------


def refined(teacher: Teacher, images: Any, monitor: Any = SILENT, **settings: Any) -> Student:
    student = prepare(teacher, BITS, **PUBLISHED)
    config = {"preset": "published", "steps": SHORT, "warm_up": 1 / 3, "batch_size": 12}
    Distill(DistillConfig(**config | settings)).refine(student, images, seed=5, monitor=monitor)
    return student


def test_a_fresh_generator_of_gdfq_gives_the_ranges(teacher: Teacher, images: ImageSet) -> None:
    student, shown, ends = prepare(teacher, BITS, **PUBLISHED), [], {}
    activations = {name: q for name, q in student.quantizers.items() if q.axis is None}
    # The first forward is of one image, to see whether compiling pays.
    handles = [student.program.register_forward_pre_hook(lambda _, x: shown.append(x[0]))]
    for name, quantizer in activations.items():
        handles.append(
            quantizer.register_forward_pre_hook(
                lambda _, x, name=name: ends.setdefault(name, []).append(x[0].detach().aminmax())
            )
        )
    # So small a rate that nothing moves: what remains are ranges.
    config = DistillConfig(
        preset="published", steps=STEPS, batch_size=12, ranges_from="gdfq", learning_rate=1e-12,
        precision="float32",
    )  # fmt: skip
    Distill(config).refine(student, images, seed=5)
    for handle in handles:
        handle.remove()
    entry = sources.get("gdfq")
    generator = entry.make(entry.config(milestones=())).source(teacher, seed=5)
    generator.begin(WARM_UP, 16, precision="float32")
    looked_at = [x for x in shown if len(x) == 16]
    assert len(looked_at) == WARM_UP
    for given in looked_at:
        torch.testing.assert_close(given, generator.next_batch(16).images)
    # No other image before the first update, and all updates are on the stored ones.
    assert [len(x) for x in shown if len(x) > 1] == [16] * WARM_UP + [12] * (STEPS - WARM_UP)
    for name, quantizer in activations.items():
        seen = [pair for pair, x in zip(ends[name], shown, strict=True) if len(x) == 16]
        low, high = (
            sum(0.1 * 0.9 ** (WARM_UP - 1 - n) * float(pair[end]) for n, pair in enumerate(seen))
            / (1 - 0.9**WARM_UP)
            for end in (0, 1)
        )
        steps = quantizer.quant_max - quantizer.quant_min
        assert float(quantizer.scale) == pytest.approx((max(high, 0) - min(low, 0)) / steps)


@pytest.mark.parametrize("kills", [2, 4, 7])
def test_killed_it_goes_on_and_ends_the_same(
    kills: int, teacher: Teacher, images: ImageSet
) -> None:
    settings = {"ranges_from": "gdfq", "feature_attention": 10.0, "legacy": True}
    whole = refined(teacher, images, **settings).state_dict()
    disk = Disk(limit=kills)
    with pytest.raises(KilledError):
        refined(teacher, images, disk, **settings)
    disk.seen.clear()
    resumed = refined(teacher, images, disk, **settings).state_dict()
    assert len(disk.seen) == SHORT - kills
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_images_of_their_own_are_followed_unless_asked(teacher: Teacher, images: ImageSet) -> None:
    own = refined(teacher, images, learning_rate=1e-12)
    other = refined(teacher, images, learning_rate=1e-12, ranges_from="gdfq")
    for name, quantizer in own.quantizers.items():
        same = torch.equal(quantizer.scale, other.quantizers[name].scale)
        assert same is (quantizer.axis is not None), name


def test_where_a_generator_cannot_give_the_ranges_it_is_refused(teacher: Teacher) -> None:
    entry = sources.get("gdfq")
    live = entry.make(entry.config.smallest()).source(teacher, seed=0)
    with pytest.raises(RecipeError, match="for stored images"):
        refined(teacher, live, ranges_from="gdfq")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 6), torch.nn.ReLU())
    net.requires_grad_(False).eval()
    spec = InputSpec((3, 2, 4), (0.5,) * 3, (0.25,) * 3)
    plain = Teacher("test", net, spec, weights_hash=hash_of_weights(net))
    pixels = ImageSet(torch.randn(8, 3, 2, 4), torch.arange(8) % 6)
    with pytest.raises(UnsupportedModelError, match="BatchNorm"):
        refined(plain, pixels, ranges_from="gdfq")
    for preset in ("learned", "zaq"):
        with pytest.raises(ValueError, match=f"'{preset}' does not"):
            DistillConfig(preset=preset, ranges_from="gdfq")
    with pytest.raises(ValueError, match="ranges_from must be one of images, gdfq"):
        DistillConfig(preset="published", ranges_from="generator")


# Rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "batch_norm", "noted"),
    [
        ("published", "fold", True),
        ("published", "frozen", False),
        ("gdfq", "fold", True),
        ("zaq", "fold", True),
        ("learned", "fold", False),
    ],
)
def test_published_rates_on_folded_batch_norm_are_pointed_out(
    preset: str, batch_norm: str, noted: bool, teacher: Teacher, images: ImageSet
) -> None:
    student, disk = prepare(teacher, BITS, plan="every_layer", batch_norm=batch_norm), Disk(-1)
    config = DistillConfig(preset=preset, steps=2, batch_size=4, learning_rate=1e-6)
    Distill(config).refine(student, images, monitor=disk)
    notes = [note for note in disk.notes if "black or white" not in note]
    assert len(notes) == noted
    if noted:
        assert f"preset '{preset}'" in notes[0]
        assert "batch_norm 'frozen'" in notes[0]

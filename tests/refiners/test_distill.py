"""Distillation teaches the student, stays exact and keeps the original beside what is learnt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from killed_run import Disk, KilledError
from residual_teacher import build, residual_teacher
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from emptyset.errors import CollapseError, ImagesError, NotCalibratedError, UnsupportedModelError
from emptyset.exporters.simulation import simulate
from emptyset.graph.residual_bodies import Tapped, residual_bodies
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import Batch, ImageSet
from emptyset.images.image_source import Disagreement, StoredImages
from emptyset.inversion import compilation
from emptyset.losses.distillation import distillation_loss
from emptyset.monitor import SILENT, SilentMonitor
from emptyset.quantizers.bits import Bits
from emptyset.refiners import training
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.refiners.training import LOOK_EVERY
from emptyset.refiners.training_parts import pays_to_compile, pays_to_halve
from emptyset.teachers.teacher import Teacher

HAST = {"cross_entropy": 0.0, "feature_attention": 10.0, "perturbation": 0.01}
CASES = {
    "learned": ("integer", "fold", {}),
    "learned by value": ("every_layer", "fold", {"mask": "value"}),
    "published": ("every_layer", "frozen", {"preset": "published"}),
    "mixed": ("every_layer", "frozen", {"preset": "published", "mixing": "cutmix"}),
    "legacy": ("every_layer", "frozen", {"preset": "published", "legacy": True}),
    "hast": ("every_layer", "frozen", {"preset": "published", **HAST}),
    "published, integer": ("integer", "fold", {"preset": "published", **HAST}),
}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return residual_teacher()


@pytest.fixture(scope="module")
def images(teacher: Teacher) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(40, 3, 8, 10, generator=generator)
    return ImageSet(pixels, teacher.module(pixels).argmax(1))


def distill(
    teacher: Teacher, images: object, plan: str = "integer", batch_norm: str = "fold",
    bits: str = "w3a3", monitor: object = None, calibrated: bool = True, **settings: object,
) -> Student:  # fmt: skip
    student = prepare(teacher, bits, plan=plan, batch_norm=batch_norm)
    if calibrated and isinstance(images, ImageSet):
        Calibrate(CalibrateConfig()).refine(student, images)
    options = {"monitor": monitor} if monitor is not None else {}
    config = DistillConfig(**{"steps": 8, "batch_size": 16, "flip": 0.0, **settings})
    Distill(config).refine(student, images, seed=7, **options)
    return student


def divergence(student: Student, images: ImageSet) -> float:
    with torch.no_grad():
        theirs = student.teacher.module(images.images)
        return float(distillation_loss(student(images.images), theirs, temperature=1.0))


@pytest.mark.parametrize("case", CASES)
class TestEveryPreset:
    def test_the_student_is_what_the_file_computes(
        self, case: str, teacher: Teacher, images: ImageSet
    ) -> None:
        plan, batch_norm, settings = CASES[case]
        bits = "w3a3" if plan == "integer" else "w8a8"
        student = distill(teacher, images, plan, batch_norm, bits=bits, **settings)
        assert student.originals
        with torch.no_grad():
            ours, theirs = student(images.images), simulate(student)(images.images)
        if plan == "integer":
            assert torch.equal(ours, theirs)
        else:
            # Biases are in float here and rounded to whole (small) steps there.
            torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.01)

    def test_float_mode_is_the_teacher_and_leaves_what_was_learnt(
        self, case: str, teacher: Teacher, images: ImageSet
    ) -> None:
        plan, batch_norm, settings = CASES[case]
        student = distill(teacher, images, plan, batch_norm, learning_rate=1e-2, **settings)
        learnt = student.state_dict()
        with student.float_mode():
            expected = teacher.module(images.images)
            torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)
        assert all(torch.equal(value, learnt[k]) for k, value in student.state_dict().items())
        changed = [k for k, v in student.originals.items() if not torch.equal(v, learnt[k])]
        assert {"stem.weight", "body.weight", "linear.weight", "linear.bias"} <= set(changed)

    def test_killed_it_goes_on_and_ends_the_same(
        self, case: str, teacher: Teacher, images: ImageSet
    ) -> None:
        plan, batch_norm, settings = CASES[case]
        whole = distill(teacher, images, plan, batch_norm, **settings).state_dict()
        disk = Disk(limit=5)
        with pytest.raises(KilledError):
            distill(teacher, images, plan, batch_norm, monitor=disk, **settings)
        disk.seen.clear()
        resumed = distill(teacher, images, plan, batch_norm, monitor=disk, **settings)
        assert disk.seen == [("distill", number, 8) for number in (6, 7, 8)]
        folded = batch_norm == "fold" and settings.get("preset") == "published"
        assert len(set(disk.notes)) == folded
        assert all(torch.equal(v, whole[name]) for name, v in resumed.state_dict().items())

    def test_a_saved_student_is_the_same_student(
        self, case: str, teacher: Teacher, images: ImageSet, tmp_path: Path
    ) -> None:
        plan, batch_norm, settings = CASES[case]
        student = distill(teacher, images, plan, batch_norm, **settings)
        student.save(tmp_path / "student.safetensors")
        loaded = prepare(teacher, "w3a3", plan=plan, batch_norm=batch_norm)
        loaded.load_state(tmp_path / "student.safetensors")
        for one in (loaded, student.copy()):
            assert torch.equal(one(images.images), student(images.images))
            with one.float_mode(), student.float_mode():
                assert torch.equal(one(images.images), student(images.images))


def test_compiled_updates_learn_the_same_and_the_choice_outlives_a_kill(
    teacher: Teacher, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "precision": "float32"}
    eager = distill(teacher, images, **settings).state_dict()
    monkeypatch.setattr(training, "pays_to_compile", lambda *_, **__: True)
    disk = Disk(limit=5)
    with pytest.raises(KilledError):
        distill(teacher, images, monitor=disk, **settings)
    # Decided once: what the resumed run would decide itself does not count.
    monkeypatch.setattr(training, "pays_to_compile", lambda *_, **__: False)
    resumed = distill(teacher, images, monitor=disk, **settings).state_dict()
    assert bool(disk.states["distill"]["compiled"])
    for name, value in resumed.items():
        torch.testing.assert_close(value, eager[name], rtol=1e-3, atol=1e-5, msg=name)


class Dtypes(TorchDispatchMode):
    """Remembers of which type the operands of convolutions and linears are."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in {"convolution", "addmm", "mkldnn_convolution"}:
            self.products.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["learned", "hast"])
def test_only_products_are_in_bfloat16_and_the_choice_outlives_a_kill(
    case: str, teacher: Teacher, images: ImageSet
) -> None:
    plan, batch_norm, settings = CASES[case]
    student = prepare(teacher, "w4a4", plan=plan, batch_norm=batch_norm)
    Calibrate(CalibrateConfig()).refine(student, images)
    exact = student.copy()
    config = DistillConfig(
        **{**settings, "steps": 6, "warm_up": 0.0, "batch_size": 16, "learning_rate": 1e-4}
    )
    disk = Disk(limit=3)
    quantized: set[torch.dtype] = set()
    for quantizer in student.quantizers.values():
        quantizer.register_forward_hook(lambda _, given, __: quantized.add(given[0].dtype))
    half, dtypes = Distill(replace(config, precision="bfloat16")), Dtypes()
    with pytest.raises(KilledError), dtypes:
        half.refine(student, images, monitor=disk)
    assert torch.bfloat16 in dtypes.products
    assert quantized == {torch.float32}
    dtypes = Dtypes()
    with dtypes:
        # Decided once: what the resumed run would decide itself does not count.
        Distill(replace(config, precision="float32")).refine(student, images, monitor=disk)
    assert torch.bfloat16 in dtypes.products
    Distill(replace(config, precision="float32")).refine(exact, images)
    with torch.no_grad():
        before, after = (one(images.images) for one in (exact, student))
    assert 0 < (before - after).abs().max() < 0.2 * before.std()


def test_bfloat16_is_for_few_bits_and_hardware_that_multiplies_it(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (prepare(teacher, bits, plan="every_layer") for bits in ("w8a5", "w8a6"))
    for has in (True, False):
        monkeypatch.setattr(compilation, "has_fast_bfloat16", lambda _, found=has: found)
        found = [pays_to_halve(few, p) for p in ("auto", "float32", "bfloat16")]
        assert found == [has, False, True]
        assert not pays_to_halve(many, "auto")


def test_compiling_pays_only_for_long_training(teacher: Teacher) -> None:
    student = prepare(teacher, "w3a3", plan="every_layer")
    few, many = (
        pays_to_compile(student, batch_size=64, updates=updates, monitor=SILENT)
        for updates in (10, 10_000_000)
    )
    assert (few, many) == (False, True)


def test_the_student_comes_closer_to_the_teacher(teacher: Teacher, images: ImageSet) -> None:
    before = prepare(teacher, "w2a3", plan="every_layer")
    Calibrate(CalibrateConfig()).refine(before, images)
    after = distill(
        teacher, images, "every_layer", bits="w2a3", steps=60, learning_rate=3e-3,
        augmentation="none",
    )  # fmt: skip
    assert divergence(after, images) < 0.6 * divergence(before, images)


def test_an_uncalibrated_student_is_calibrated_first(teacher: Teacher, images: ImageSet) -> None:
    states = [
        distill(teacher, images, calibrated=calibrated).state_dict() for calibrated in (True, False)
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_one_training_after_another_keeps_the_first_originals(
    teacher: Teacher, images: ImageSet
) -> None:
    student = distill(teacher, images)
    first = {path: value.clone() for path, value in student.originals.items()}
    Distill(DistillConfig(steps=3, batch_size=16)).refine(student, images, seed=2)
    assert all(torch.equal(value, first[path]) for path, value in student.originals.items())


def test_a_fault_leaves_the_student_as_it_was(teacher: Teacher, images: ImageSet) -> None:
    student = prepare(teacher, "w3a3")
    Calibrate(CalibrateConfig()).refine(student, images)
    before = student.state_dict()
    with pytest.raises(CollapseError, match="Lower learning_rate"):
        Distill(DistillConfig(steps=5, learning_rate=1e30, batch_size=16)).refine(student, images)
    after = student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in student.program.parameters())
    assert not any(quantizer.trained for quantizer in student.quantizers.values())


def test_a_fault_is_found_long_before_the_end(teacher: Teacher, images: ImageSet) -> None:
    class Counting(SilentMonitor):
        told = 0

        def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
            self.told = done

    student, monitor = prepare(teacher, "w3a3"), Counting()
    Calibrate(CalibrateConfig()).refine(student, images)
    config = DistillConfig(steps=3 * LOOK_EVERY, learning_rate=1e30, batch_size=2)
    with pytest.raises(CollapseError, match="Lower learning_rate"):
        Distill(config).refine(student, images, monitor=monitor)
    assert monitor.told < LOOK_EVERY


class Listening(StoredImages):
    """A source that hears what was made of its images."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images, seed=7)
        self.heard: list[Disagreement] = []
        self.given: list[Batch] = []

    def next_batch(self, size: int) -> Batch:
        self.given.append(super().next_batch(size))
        return self.given[-1]

    def learn_from(self, outcome: Disagreement) -> None:
        self.heard.append(outcome)


def test_a_source_hears_what_both_said_about_every_batch(
    teacher: Teacher, images: ImageSet
) -> None:
    student = prepare(teacher, "w3a3")
    Calibrate(CalibrateConfig()).refine(student, images)
    source = Listening(images)
    config = DistillConfig(steps=4, batch_size=16, augmentation="none", precision="float32")
    Distill(config).refine(student, source, seed=7)
    assert len(source.heard) == 4
    for outcome, batch in zip(source.heard, source.given, strict=True):
        assert torch.equal(outcome.batch.images, batch.images)
        assert torch.equal(outcome.batch.targets, batch.targets)
        torch.testing.assert_close(outcome.teacher_logits, teacher.module(batch.images))
        assert outcome.student_logits.shape == (16, 5)
        assert not outcome.student_logits.requires_grad
    with pytest.raises(NotCalibratedError, match="cannot be set from an image source"):
        Distill(config).refine(prepare(teacher, "w3a3"), source)


def test_without_labels_the_cross_entropy_is_refused(teacher: Teacher, images: ImageSet) -> None:
    with pytest.raises(ImagesError, match="Set cross_entropy to 0"):
        distill(teacher, ImageSet(images.images), preset="published")


def test_features_need_residual_units(images: ImageSet) -> None:
    plain = build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 5)))
    with pytest.raises(UnsupportedModelError, match="Set feature_attention to 0"):
        distill(plain, images, feature_attention=1.0)


@pytest.mark.parametrize(("plan", "batch_norm"), [("integer", "fold"), ("every_layer", "frozen")])
def test_a_residual_units_body_is_what_is_added(
    plan: str, batch_norm: str, teacher: Teacher, images: ImageSet
) -> None:
    student = prepare(teacher, "w8a8", plan=plan, batch_norm=batch_norm)
    tapped, net = Tapped(student.program, residual_bodies(student.program)), teacher.module
    with student.float_mode():
        logits, (body,) = tapped(images.images)
    inner = F.relu(net.norm(net.stem(images.images)))
    torch.testing.assert_close(body, net.body_norm(net.body(inner)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, net(images.images), atol=1e-5, rtol=1e-5)


def test_one_layer_alone_keeps_its_learnt_weight_and_the_others_originals(
    teacher: Teacher, images: ImageSet
) -> None:
    student = distill(teacher, images, learning_rate=1e-2)
    learnt = {path: student.program.get_parameter(path).clone() for path in student.originals}
    with student.only_layer("body"):
        for path in ("body.weight", "body.bias"):
            assert torch.equal(student.program.get_parameter(path), learnt[path])
        stem = student.program.get_parameter("stem.weight")
        assert torch.equal(stem, student.originals["stem.weight"])


def test_the_rate_falls_by_the_schedule_of_its_preset() -> None:
    bits = Bits.parse("w4a4")
    course = DistillConfig(preset="published").course(bits)
    assert (course.steps, course.range_steps) == (30200, 800)
    rates = [course.share_of_rate(step) for step in (800, 3999, 4000, 8000, 12000, 30199)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
    tenth = DistillConfig(preset="published", steps=3020).course(bits)
    assert tenth.range_steps == 80
    assert [tenth.share_of_rate(s) for s in (399, 400)] == pytest.approx([1, 0.1])
    learned = DistillConfig().course(bits)
    assert [learned.share_of_rate(s) for s in (0, 250)] == pytest.approx([1, 0.5])
    assert (learned.steps, learned.learning_rate) == (500, 2e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "learnt"}, "gdfq, zaq, ait, adasg, adadfq, texq. Got 'learnt'"),
        ({"steps": 0}, "steps must be above 0"),
        ({"flip": 1.5}, "flip must be from 0 to 1"),
        ({"perturbation": -1.0}, "perturbation must not be negative"),
        ({"augmentation": "rotate"}, "shift, crop, none. Got 'rotate'"),
        ({"legacy": True}, "set one of these"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)

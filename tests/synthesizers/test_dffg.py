"""DFFG: its objective, its harvest, and that the parts are put together as the poster says."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.inversion.compilation import Execution
from emptyset.inversion.engine import invert
from emptyset.inversion.method import Seen
from emptyset.losses.layer_statistics import layer_statistics
from emptyset.synthesizers.dffg import Dffg, DffgConfig
from emptyset.teachers.teacher import InputSpec, Teacher

EXACT = Execution(compiled=False, dtype=torch.float32)


def network(classes: int = 4) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(100, classes)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        module[1].running_mean.copy_(torch.randn(5, generator=generator))
        module[1].running_var.copy_(1 + torch.rand(5, generator=generator))
    return module.requires_grad_(False).eval()


def teacher(classes: int = 4) -> Teacher:
    return Teacher("test:net", network(classes), InputSpec((3, 6, 7), (0.5,) * 3, (0.25,) * 3))


def test_the_objective_is_the_posters_sum_with_both_priors_per_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.double)
    features = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.double)
    logits = torch.randn(2, 4, generator=generator, dtype=torch.double)
    mean, var = torch.tensor([0.2, -0.3]).double(), torch.tensor([0.5, 2.0]).double()
    targets = torch.tensor([3, 1])
    config = DffgConfig(smoothness_weight=0.3, norm_weight=0.7, class_weight=2.0)
    layers = (layer_statistics(features, mean, var),)
    found = Dffg(config).objective(Seen(images, logits, None, layers, targets, {}))

    statistics = 0.0
    for c in range(2):
        values = features[:, c].flatten().tolist()
        m = sum(values) / 18
        v = sum((x - m) ** 2 for x in values) / 18
        statistics += ((m - mean[c].item()) ** 2 + (v - var[c].item()) ** 2) / 2
    smooth = norm = entropy = 0.0
    for n in range(2):
        x = images[n].tolist()
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            smooth += math.sqrt(
                sum(
                    (x[c][i + down][j + right] - x[c][i][j]) ** 2
                    for c in range(3)
                    for i in range(4 - down)
                    for j in range(max(0, -right), 5 - max(0, right))
                )
            )
        norm += math.sqrt(sum(v * v for v in images[n].flatten().tolist()))
        powers = [math.exp(v) for v in logits[n].tolist()]
        entropy -= math.log(powers[int(targets[n])] / sum(powers))
    expected = statistics + 0.3 * smooth / 2 + 0.7 * norm / 2 + 2.0 * entropy / 2
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_every_pixel_moves_by_exactly_the_step_size() -> None:
    def end(steps: int) -> torch.Tensor:
        config = DffgConfig(
            steps=steps, snapshots=1, burn_in=0.0, step_size=0.25, final_step_size=0.25
        )
        method = Dffg(config).method(teacher())
        return invert(method, teacher(), 6, seed=2, settings={}, execution=EXACT).images

    first, second, third = (end(steps) for steps in (1, 2, 3))
    for earlier, later in ((first, second), (second, third)):
        torch.testing.assert_close((later - earlier).abs(), torch.full_like(first, 0.25))


def test_the_harvests_of_one_run_are_all_stored_with_their_labels() -> None:
    config = DffgConfig(steps=20, snapshots=4, burn_in=0.2, batch_size=5)
    images = Dffg(config).synthesize(teacher(), 20, seed=0)
    assert images.targets is not None
    assert torch.equal(images.targets.view(4, 5)[0], images.targets.view(4, 5)[3])
    harvests = images.images.view(4, 5, 3, 6, 7)
    # Later harvests are further from the first, and all are different.
    gaps = [(harvests[k] - harvests[0]).abs().mean().item() for k in range(1, 4)]
    assert 0 < gaps[0] < gaps[2]


def test_a_restart_begins_again_with_full_steps_and_without_momentum() -> None:
    still: dict[str, Any] = {"steps": 12, "snapshots": 3, "burn_in": 0.0, "step_size": 0.3}
    found = {}
    for restart in (False, True):
        method = Dffg(DffgConfig(restart=restart, **still)).method(teacher())
        images = invert(method, teacher(), 9, seed=0, settings={}, execution=EXACT).images
        found[restart] = images.view(3, 3, 3, 6, 7)
    moved = {r: (x[2] - x[1]).abs().mean().item() for r, x in found.items()}
    assert moved[True] > 2 * moved[False]


def test_both_sides_of_the_ablation_lower_the_loss() -> None:
    for update, size in (("mi_fgsm", 0.1), ("adam", 0.1)):
        losses = []

        class Recording(Dffg):
            def objective(self, seen: Seen) -> torch.Tensor:
                loss = super().objective(seen)
                losses.append(loss.item())  # noqa: B023
                return loss

        config = DffgConfig(steps=60, snapshots=2, batch_size=16, update=update, step_size=size)
        Recording(config).synthesize(teacher(), 32, seed=0)
        assert losses[-1] < 0.5 * losses[0]


def test_crops_change_what_is_found() -> None:
    plain, cropped = (
        Dffg(DffgConfig(steps=8, snapshots=2, crop=crop)).synthesize(teacher(), 8, seed=0).images
        for crop in (False, True)
    )
    assert not torch.equal(plain, cropped)


def test_only_the_classes_asked_for_are_made() -> None:
    config = DffgConfig(steps=5, snapshots=1, classes=(1, 3))
    targets = Dffg(config).synthesize(teacher(), 40, seed=0).targets
    assert targets is not None
    assert set(targets.tolist()) == {1, 3}
    with pytest.raises(ImagesError, match=r"class 4 is asked for.*classes 0 to 3"):
        Dffg(DffgConfig(classes=(1, 4))).synthesize(teacher(), 8, seed=0)


def test_a_teacher_of_one_class_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="at least 2 classes"):
        Dffg(DffgConfig.smallest()).synthesize(teacher(classes=1), 8, seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("snapshots", 600), ("burn_in", 1.0), ("update", "sgd"), ("momentum", -1.0),
     ("class_weight", -1.0), ("low_pass", 0.0), ("step_size", 0.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        DffgConfig(**{name: value})  # type: ignore[arg-type]

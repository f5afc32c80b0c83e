"""What is optimised: pixels, or the coefficients of their cosine transform."""

import numpy as np
import pytest
import torch
from scipy import fft
from torch import Tensor, nn

from emptyset.errors import RecipeError
from emptyset.inversion.canvas import Spectrum, cosine_basis, photo_amplitudes
from emptyset.inversion.updates import Adam, Clipped, Restarted, unclipped
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import InputSpec, Teacher

CPU = torch.device("cpu")
LOW, HIGH = (-1.5, -2.0), (1.0, 2.5)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Normed().eval().requires_grad_(False)
    return Teacher("test", module, InputSpec((3, 12, 9), (0.4,) * 3, (0.2,) * 3))


def test_the_images_are_the_inverse_cosine_transform_of_the_scaled_coefficients() -> None:
    canvas = Spectrum(1.25, LOW, HIGH)
    (coefficients,) = canvas.start((3, 2, 8, 6), torch.Generator().manual_seed(1))
    scale = np.empty((8, 6))
    for row in range(8):
        for column in range(6):
            # Half periods along the shorter side, which has 6 pixels.
            scale[row, column] = max(1.0, np.hypot(row * 6 / 8, column)) ** -1.25
    scale /= np.sqrt((scale**2).mean())
    free = fft.idctn(coefficients.double().numpy() * scale, axes=(2, 3), norm="ortho")
    low, high = (np.array(values).reshape(2, 1, 1) for values in (LOW, HIGH))
    middle, half = (low + high) / 2, (high - low) / 2
    expected = middle + half * np.tanh((free - middle) / half)
    np.testing.assert_allclose(canvas.render([coefficients]).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_basis_is_orthonormal(size: int) -> None:
    basis = cosine_basis(size, CPU)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size), atol=1e-5, rtol=0)


def test_without_an_exponent_all_amplitudes_are_alike() -> None:
    assert torch.equal(photo_amplitudes(4, 7, 0.0, CPU), torch.ones(4, 7))


def test_an_image_starts_with_unit_spread_and_falls_with_frequency() -> None:
    wide = Spectrum(1.0, (-1e4,), (1e4,))
    variables = wide.start((600, 1, 16, 16), torch.Generator().manual_seed(2))
    images = wide.render(variables)
    assert abs(images.std().item() - 1) < 0.05
    power = fft.dctn(images.numpy(), axes=(2, 3), norm="ortho")[:, 0].std(axis=0)
    np.testing.assert_allclose(power[0, 2] / power[0, 8], 4, rtol=0.2)
    np.testing.assert_allclose(power[2, 0] / power[8, 0], 4, rtol=0.2)


def test_no_pixel_leaves_its_range_and_gradients_are_finite() -> None:
    canvas = Spectrum(1.0, LOW, HIGH, spread=50.0)
    (coefficients,) = canvas.start((2, 2, 5, 7), torch.Generator().manual_seed(3))
    coefficients.requires_grad_()
    images = canvas.render([coefficients])
    low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
    assert bool((low >= torch.tensor(LOW) - 1e-5).all())
    assert bool((high <= torch.tensor(HIGH) + 1e-5).all())
    images.sum().backward()
    assert bool(torch.isfinite(coefficients.grad).all())


def test_it_is_rendered_in_float32_under_autocast() -> None:
    canvas = Spectrum(1.0, LOW, HIGH)
    variables = canvas.start((2, 2, 5, 7), torch.Generator().manual_seed(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(canvas.render(variables), canvas.render([variables[0]]))
        assert canvas.render(variables).dtype == torch.float32
        inside = canvas.render(variables)
    assert torch.equal(inside, canvas.render(variables))


@pytest.mark.parametrize("name", ["zeroq", "dffg", "deep_inversion", "intraq", "hast", "dsg"])
def test_pixel_methods_take_it(name: str, teacher: Teacher) -> None:
    entry = synthesizers.get(name)
    made = []
    for spectrum in (0.0, 1.0):
        settings = {"steps": 6, "batch_size": 4, "spectrum": spectrum}
        settings |= {"snapshots": 2} if name == "dffg" else {}
        images = entry.make(entry.config(**settings)).synthesize(teacher, 8, seed=5).images
        made.append(images)
        assert bool(torch.isfinite(images).all())
    assert not torch.equal(*made)
    # Between black and white, in the teacher's units.
    assert made[1].min() >= -0.4 / 0.2 - 1e-4
    assert made[1].max() <= 0.6 / 0.2 + 1e-4

    def roughness(images: Tensor) -> float:
        return float((images.diff(dim=3).square().mean() / images.var()).item())

    assert roughness(made[1]) < 0.7 * roughness(made[0])


def test_images_that_a_network_makes_have_no_spectrum_to_optimise(teacher: Teacher) -> None:
    entry = synthesizers.get("genie_d")
    method = entry.make(entry.config(steps=2, batch_size=4, spectrum=1.0))
    with pytest.raises(RecipeError, match="genie_d: its images come from a network"):
        method.synthesize(teacher, 4, seed=0)


def test_a_negative_exponent_is_refused() -> None:
    with pytest.raises(ValueError, match="spectrum"):
        synthesizers.get("zeroq").config(spectrum=-1.0)


def test_a_rule_loses_its_range_under_whatever_it_is_wrapped_in() -> None:
    rule = Adam()
    assert unclipped(Clipped(Restarted(rule, (3,)), LOW, HIGH)) == Restarted(rule, (3,))
    assert unclipped(Restarted(Clipped(rule, LOW, HIGH), (3,))) == Restarted(rule, (3,))

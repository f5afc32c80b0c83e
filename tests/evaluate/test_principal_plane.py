"""The plane of principal components, against scikit-learn and by hand."""

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from emptyset.errors import ImagesError
from emptyset.evaluate.principal_plane import principal_plane


def features(count: int, width: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=drawn, dtype=torch.double)
    return torch.randn(count, width, generator=drawn, dtype=torch.double) @ mixed + 3.0


def test_places_are_those_of_scikit_learn_up_to_the_sign_of_an_axis() -> None:
    fitted, others = features(37, 5), features(11, 5, seed=1)
    plane = principal_plane(fitted)
    scaler = StandardScaler().fit(fitted.numpy())
    pca = PCA(2).fit(scaler.transform(fitted.numpy()))
    expected = torch.from_numpy(pca.transform(scaler.transform(others.numpy())))
    torch.testing.assert_close(plane.project(others).abs(), expected.abs(), rtol=1e-9, atol=1e-9)
    assert plane.explained == pytest.approx(pca.explained_variance_ratio_.tolist())


def test_an_axis_points_to_where_its_largest_entry_is_positive() -> None:
    plane = principal_plane(features(23, 4))
    for axis in plane.axes.T:
        assert axis[axis.abs().argmax()] > 0
        assert axis.norm().item() == pytest.approx(1.0)


def test_what_never_changes_is_left_as_it_is() -> None:
    line = torch.arange(6.0)[:, None] * torch.tensor([1.0, -2.0, 0.0])
    plane = principal_plane(line)
    # Two features that are one: everything lies on the first axis, in standard deviations.
    assert plane.explained == pytest.approx((1.0, 0.0), abs=1e-9)
    places = plane.project(line)
    assert places[:, 1].abs().max().item() == pytest.approx(0.0, abs=1e-9)
    step = 2**0.5 / torch.arange(6.0).std(correction=0).item()
    assert places[:, 0].diff().abs().tolist() == pytest.approx([step] * 5)


@pytest.mark.parametrize("shape", [(2, 4), (5, 1)])
def test_too_little_for_a_plane_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ImagesError, match="at least 3 images with 2 features"):
        principal_plane(torch.rand(shape))


def test_features_that_are_not_finite_are_refused() -> None:
    broken = features(6, 3)
    broken[4, 1] = float("inf")
    with pytest.raises(ImagesError, match="finite"):
        principal_plane(broken)


def test_images_that_are_all_alike_span_no_plane() -> None:
    with pytest.raises(ImagesError, match="all equal"):
        principal_plane(torch.ones(4, 3))

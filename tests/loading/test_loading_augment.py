"""Augment: every operation against a plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from headctssl.loading import augment


def view(seed: int = 0, shape: tuple[int, ...] = (2, 9, 11, 10)) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [-0.3, 0.2])
def test_shift(offset: float) -> None:
    x = view()
    expected = np.clip(x.numpy() + np.float32(offset), 0, 1)
    assert np.array_equal(augment.shift_(x, offset).numpy(), expected)


def test_gamma() -> None:
    x = view()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    expected = x.numpy().astype(np.float64) ** 0.4
    changed = augment.gamma_(x, 0.4)
    assert np.allclose(changed.numpy(), expected, atol=1e-6)
    assert changed[0, 0, 0, 0] == 0
    assert changed[0, 0, 0, 1] == 1


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0, 3.0])
def test_blur_is_the_gaussian_filter_of_scipy(sigma: float) -> None:
    x = view()
    # scipy cuts off at int(truncate * sigma + .5) taps, we at ceil(4 sigma).
    truncate = (np.ceil(4 * sigma) + 0.1) / sigma
    expected = ndimage.gaussian_filter(x.numpy(), (0, sigma, sigma, sigma), mode="nearest", truncate=truncate)
    assert np.allclose(augment.blur_(x, sigma).numpy(), expected, atol=2e-6)
    part = view(shape=(2, 9, 11, 20))[..., ::2]
    expected = ndimage.gaussian_filter(part.numpy(), (0, sigma, sigma, sigma), mode="nearest", truncate=truncate)
    assert np.allclose(augment.blur_(part, sigma).numpy(), expected, atol=2e-6), "of any strides"


def test_noise_has_its_own_seed_and_the_asked_strength() -> None:
    x = torch.full((2, 24, 24, 24), 0.5)
    one, again, other = (augment.add_noise_(x.clone(), 0.05, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert abs(float((one - 0.5).std()) - 0.05) < 0.002
    assert abs(float((one - 0.5).mean())) < 0.002
    assert not torch.equal(one[0], one[1]), "channels have their own noise"
    strong = augment.add_noise_(x.clone(), 1.0, 1)
    assert strong.min() == 0
    assert strong.max() == 1


def test_rotation_turns_content_as_its_name_says() -> None:
    # +90 degrees about z carries y to x: R (z, y, x) = (z, -x, y).
    assert np.allclose(augment.rotation_matrix((90, 0, 0)) @ [0, 1, 0], [0, 0, 1])
    assert np.allclose(augment.rotation_matrix((0, 90, 0)) @ [1, 0, 0], [0, 0, 1])
    assert np.allclose(augment.rotation_matrix((0, 0, 90)) @ [1, 0, 0], [0, 1, 0])
    assert np.allclose(augment.rotation_matrix((20, -30, 40)) @ augment.rotation_matrix((20, -30, 40)).T, np.eye(3))
    # z is turned about first.
    both = augment.rotation_matrix((90, 0, 90))
    assert np.allclose(both, augment.rotation_matrix((0, 0, 90)) @ augment.rotation_matrix((90, 0, 0)))


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (25.0, 0.0, 0.0), (8.0, -12.0, 20.0)])
def test_rotate_is_linear_interpolation_about_the_centre_in_mm(angles: tuple[float, float, float]) -> None:
    shape, voxel = (8, 9, 7), (2.0, 1.0, 1.5)
    margin = augment.rotation_margin(shape, voxel, angles)
    wide = tuple(n + 2 * m for n, m in zip(shape, margin, strict=True))
    x = view(3, (1, *wide)) * 100
    mm = np.asarray(voxel)
    places = np.moveaxis(np.indices(shape, dtype=float), 0, -1)
    offset = (places - (np.asarray(shape) - 1) / 2) * mm
    source = offset @ augment.rotation_matrix(angles) / mm + (np.asarray(wide) - 1) / 2  # R^T p, written p^T R
    assert (source >= 0).all(), "the margin holds every corner"
    assert (source <= np.asarray(wide) - 1).all(), "the margin holds every corner"
    expected = ndimage.map_coordinates(x[0].numpy().astype(np.float64), np.moveaxis(source, -1, 0), order=1)
    found = augment.rotate(x, shape, voxel, angles, fill=-7.0)
    assert found.shape == (1, *shape)
    assert np.allclose(found[0].numpy(), expected, atol=2e-3)


def test_rotate_fills_the_outside() -> None:
    turned = augment.rotate(torch.full((1, 12, 12, 12), 5.0), (12, 12, 12), (1.0, 1.0, 1.0), (45.0, 0.0, 0.0), -1024.0)
    assert turned[0, 6, 0, 0] == -1024
    assert turned[0, 6, 6, 6] == 5

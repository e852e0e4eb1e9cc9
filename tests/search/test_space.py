"""Densities are accounted for: they integrate to one, and samples follow them."""

from __future__ import annotations

import numpy as np
import pytest

from valence.search import Box, Unbounded
from valence.search.gaussian import Gaussian

POLICIES = [
    (np.array([0.1, -0.2]), 0.2, 0.0),
    (np.array([0.95, -0.9]), 0.4, 0.3),
    (np.array([3.2, -7.7]), 0.6, -0.2),
]


def gaussian(mean: np.ndarray, size: float, lean: float) -> Gaussian:
    shape = np.array([[1.3, lean], [lean, 0.9]])
    return Gaussian(mean, size, shape / np.sqrt(np.linalg.det(shape)))


def centres(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


@pytest.mark.parametrize("mean, size, lean", POLICIES)
def test_the_density_in_a_box_integrates_to_one_and_has_the_samples_moments(
    mean: np.ndarray, size: float, lean: float
) -> None:
    box, policy = Box([-3, 10], [1, 16]), gaussian(mean, size, lean)
    side = centres(160)
    grid = np.stack(np.meshgrid(-3 + 4 * side, 10 + 6 * side, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(box.log_density(policy, grid)) * 4 * 6 / len(grid)
    assert density.sum() == pytest.approx(1.0, abs=1e-3)
    x = box.points(policy.unwhiten(np.random.default_rng(0).standard_normal((200_000, 2))))
    expected = density @ grid / density.sum()
    spread = (density[:, None] * (grid - expected)).T @ (grid - expected)
    np.testing.assert_allclose(x.mean(0), expected, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), spread, atol=0.03)


def test_a_density_far_inside_is_the_gaussians_own() -> None:
    box, policy = Box(-1, 1, 2), gaussian(np.array([0.1, 0.0]), 0.05, 0.2)
    x = np.array([[0.1, 0.02], [0.2, -0.1]])
    np.testing.assert_allclose(box.log_density(policy, x), policy.log_prob(x))


def test_no_mass_lies_on_the_faces() -> None:
    x = Box(-1, 1, 2).points(2 * np.random.default_rng(0).standard_normal((10_000, 2)))
    assert ((x > -1) & (x < 1)).all()


def test_reflection_by_hand() -> None:
    box = Box(0, 2, 1)
    latent = np.array([[-1.5], [-1.0], [0.0], [0.25], [1.0], [1.2], [3.0], [4.25]])
    np.testing.assert_allclose(box.points(latent)[:, 0], [0.5, 0.0, 1.0, 1.25, 2.0, 1.8, 0.0, 1.25])


@pytest.mark.parametrize("near", [-5.3, 0.0, 0.9, 2.2, 7.1])
def test_latent_is_the_nearest_image(near: float) -> None:
    box = Box(-2, 6, 1)
    x = np.linspace(-2, 6, 9)[:, None]
    latent = box.latent(x, np.array([near]))
    np.testing.assert_allclose(box.points(latent), x, atol=1e-12)
    images = np.concatenate([box.latent(x, np.array([place])) for place in np.arange(-9.0, 10)], 1)
    np.testing.assert_allclose(np.abs(images - near).min(1), np.abs(latent[:, 0] - near))


def test_an_unbounded_density() -> None:
    space, policy = Unbounded([1.0, 2.0], [0.5, 4.0]), gaussian(np.zeros(2), 0.5, 0.1)
    side = 8 * centres(200) - 4
    grid = np.stack(np.meshgrid(1 + side * 0.5, 2 + side * 4, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(space.log_density(policy, grid)) * (4 * 32) / len(grid)
    assert density.sum() == pytest.approx(1.0, abs=1e-6)
    latent = np.array([[0.3, -0.1]])
    np.testing.assert_allclose(space.latent(space.points(latent), np.zeros(2)), latent)


def test_a_wide_policy_in_many_coordinates_says_that_its_density_cannot_be_summed() -> None:
    with pytest.raises(ValueError, match="too wide"):
        Box(-1, 1, 12).log_density(Gaussian.round(np.zeros(12), 0.6), np.zeros((1, 12)))


@pytest.mark.parametrize(
    "low, high, dim",
    [(1, 1, 2), (2, 1, 2), (0, np.inf, 2), (np.nan, 1, 2), (-1, 1, None), (-1, 1, 0), ([0, 0], [1, 1, 1], None),
     ([0, 2], [1, 1], None), ([0, 0], 1, 3)],
)  # fmt: skip
def test_a_bad_box_is_refused(low: object, high: object, dim: int | None) -> None:
    with pytest.raises(ValueError):
        Box(low, high, dim)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mean, scale", [([0, 0], [1, 0]), ([0, 0], -1), ([0, np.nan], 1), ([0, 0], [1, 1, 1])])
def test_a_bad_unbounded_space_is_refused(mean: list[float], scale: object) -> None:
    with pytest.raises(ValueError):
        Unbounded(mean, scale)  # pyright: ignore[reportArgumentType]


def test_points_outside_a_box_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        Box(-1, 1, 1).latent(np.array([[1.5]]), np.zeros(1))

"""Spaces map latent vectors to points and back, and refuse what cannot be a space."""

from __future__ import annotations

import numpy as np
import pytest

from valence.search import Box, Unbounded


def test_a_box_reflects_latent_vectors_by_a_triangle_wave() -> None:
    """Against another formula of the wave, whose period is 4: 2/pi asin(sin(pi u / 2))."""
    latent = 3 * np.random.default_rng(0).standard_normal((1000, 2))
    wave = 2 / np.pi * np.arcsin(np.sin(np.pi * latent / 2))
    np.testing.assert_allclose(Box([-3, 10], [1, 16]).points(latent), [-1, 13] + wave * [2, 3], atol=1e-12)


def test_an_unbounded_space_shifts_and_scales() -> None:
    space, latent = Unbounded([1.0, 2.0], [0.5, 4.0]), np.array([[0.3, -0.1]])
    np.testing.assert_allclose(space.points(latent), [[1.15, 1.6]])
    np.testing.assert_allclose(space.latent(space.points(latent), np.zeros(2)), latent)


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

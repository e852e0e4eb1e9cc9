"""Grids of images: where each lies, how large it is shown, and how much images of one prompt differ."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valence.evaluation.pictures import LARGEST, SMALLEST, grids_section, image_grid, pixel_spread

Image = pytest.importorskip("PIL.Image")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def flat(color: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Any:
    return Image.new("RGB", size, color)


def test_images_lie_row_by_row_two_pixels_apart() -> None:
    grid = image_grid([flat(RED), flat(GREEN), flat(BLUE)], 2)
    assert grid.size == (64 + 2 + 64, 64 + 2 + 64)
    assert [grid.getpixel(place) for place in [(0, 0), (63, 63), (66, 0), (129, 63), (0, 66)]] == [
        RED, RED, GREEN, GREEN, BLUE,
    ]  # fmt: skip
    # Between them and where there is none it is white.
    assert [grid.getpixel(place) for place in [(64, 10), (65, 10), (10, 64), (10, 65), (100, 100)]] == [WHITE] * 5


def test_small_images_are_enlarged_by_a_whole_factor_with_sharp_pixels() -> None:
    """20 pixels a side become 80: the smallest multiple that is at least 64."""
    small = flat(RED, (20, 20))
    small.putpixel((19, 0), GREEN)
    grid = image_grid([small], 1)
    assert grid.size == (80, 80) and set(map(tuple, np.asarray(grid).reshape(-1, 3).tolist())) == {RED, GREEN}
    assert [grid.getpixel(place) for place in [(75, 3), (76, 3), (79, 0), (79, 4)]] == [RED, GREEN, GREEN, RED]


def test_images_in_between_stay_as_they_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, LARGEST, 3), dtype=np.uint8)
    grid = image_grid([Image.fromarray(noise)], 1)
    assert np.array_equal(np.asarray(grid), noise)


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (400, 1000)])
def test_large_images_are_shrunk_in_proportion(size: tuple[int, int]) -> None:
    """Forty photographs of half a megapixel would be a page of tens of megabytes."""
    grid = image_grid([flat(RED, size), flat(BLUE, size)], 2)
    width, height = (grid.size[0] - 2) // 2, grid.size[1]
    assert max(width, height) == LARGEST and width / height == pytest.approx(size[0] / size[1], rel=0.02)
    assert grid.getpixel((width // 2, height // 2)) == RED and grid.getpixel((width + 2, height // 2)) == BLUE


def test_the_sizes_make_sense() -> None:
    assert 1 < SMALLEST < LARGEST


def test_spread_by_hand() -> None:
    """Group a: black and white, deviation of (0, 1) is sqrt(1/2). Group b: equal images, 0. c has one image."""
    images = [flat((0, 0, 0)), flat(RED), flat(WHITE), flat(RED), flat(BLUE)]
    found = pixel_spread(images, ["a", "b", "a", "b", "c"])
    assert found == pytest.approx(math.sqrt(0.5) / 2)
    assert pixel_spread(images[:3:2], [7, 7]) == pytest.approx(math.sqrt(0.5))


def test_spread_is_of_each_pixel_not_of_each_image() -> None:
    """Two images of two pixels, white and black, the other way round: every pixel differs, no mean does."""
    one = Image.fromarray(np.array([[[0] * 3, [255] * 3]], dtype=np.uint8))
    other = Image.fromarray(np.array([[[255] * 3, [0] * 3]], dtype=np.uint8))
    assert pixel_spread([one, other], [0, 0]) == pytest.approx(math.sqrt(0.5))
    assert pixel_spread([one, one], [0, 0]) == 0


def test_without_two_images_of_a_prompt_there_is_no_spread() -> None:
    assert math.isnan(pixel_spread([flat(RED), flat(BLUE)], ["a", "b"]))


def test_a_section_holds_the_grids_and_runs_nothing(tmp_path: Path) -> None:
    flat(RED).save(tmp_path / "one.png")
    flat(BLUE).save(tmp_path / "two.png")
    evil = '<script>alert("x")</script>'
    text = grids_section([("before", tmp_path / "one.png"), (evil, tmp_path / "two.png")], f"a column for: {evil}")
    assert "<script" not in text and text.count("&lt;script&gt;") == 3
    kept = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    shown = [Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) for data in kept]
    assert shown == [RED, BLUE]

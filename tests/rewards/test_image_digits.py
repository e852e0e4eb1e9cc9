"""The two classifiers of digits: right about the other half's scans in any colours, and about what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from valence.rewards.digits import (
    FLOOR,
    JUDGE_HALF,
    NO_DIGIT,
    REWARD_HALF,
    WORDS,
    digit_named,
    draw,
    half_of_digits,
    judged,
    log_probs,
    no_digits,
)  # fmt: skip
from valence.rewards.image_loading import load_image_reward
from valence.rewards.images import DEFAULT_REWARD, JUDGE

PAPERS = [((255, 255, 255), (0, 0, 0)), ((10, 10, 10), (240, 240, 240)), ((200, 40, 40), (40, 40, 200))]
"""(background, ink)."""


def painted(scan: np.ndarray, paper: tuple[int, int, int], ink: tuple[int, int, int], side: int = 32) -> Image.Image:
    """By the test's own hand, apart from the drawings that the classifiers are fitted on."""
    share = Image.fromarray((scan * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", (side, side), ink), Image.new("RGB", (side, side), paper), share)


def pictures(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray((image * 255).astype(np.uint8)) for image in pixels]


def seen(which: int, images: list[Image.Image]) -> np.ndarray:
    return log_probs(images).argmax(1) if which == REWARD_HALF else judged(images)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a handwritten digit three", 3), ("Zero", 0), ("the digit 7", 7), ("9", 9), ("a NINE, please", 9),
        ("one picture of the digit seven", 7), ("two, I said two", 2), ("one or two", None), ("a cat", None),
        ("", None), ("10", None), ("room 42", None), ("3.5", None), ("someone often", None), ("number  8 of 9", 8),
    ],
)  # fmt: skip
def test_the_digit_that_a_prompt_names(prompt: str, named: int | None) -> None:
    assert digit_named(prompt) == named


def test_the_halves_share_no_scan() -> None:
    parts = [half_of_digits(which)[0] for which in (REWARD_HALF, JUDGE_HALF)]
    first, second = ({scan.tobytes() for scan in part} for part in parts)
    assert not first & second and len(first | second) == sum(map(len, parts)) == 1797


@pytest.mark.slow
@pytest.mark.parametrize(("which", "least"), [(REWARD_HALF, 0.94), (JUDGE_HALF, 0.97)])
@pytest.mark.parametrize(("paper", "ink"), PAPERS)
def test_the_other_halfs_scans_are_named_in_any_colours(which: int, least: float, paper: Any, ink: Any) -> None:
    scans, digits = half_of_digits(1 - which)
    assert (seen(which, [painted(scan, paper, ink) for scan in scans[:450]]) == digits[:450]).mean() >= least


@pytest.mark.slow
@pytest.mark.parametrize("which", [REWARD_HALF, JUDGE_HALF])
@pytest.mark.parametrize("side", [8, 100])
def test_images_of_any_size_are_named(which: int, side: int) -> None:
    scans, digits = half_of_digits(1 - which)
    few = [painted(scan, *PAPERS[0], side=side) for scan in scans[:200]]
    assert (seen(which, few) == digits[:200]).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("which", [REWARD_HALF, JUDGE_HALF])
def test_what_shows_no_digit_is_none(which: int) -> None:
    scans, _ = half_of_digits(1 - which)
    found = seen(which, pictures(no_digits(scans[:300], np.random.default_rng(7))))
    assert (found == NO_DIGIT).mean() >= 0.9
    flat = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black", "red")]
    assert (seen(which, flat) == NO_DIGIT).all()


def test_drawings_are_images_and_the_same_again() -> None:
    scans, _ = half_of_digits(REWARD_HALF)
    first, again = (draw(scans[:20], np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (20, 32, 32, 3) and first.min() >= 0 and first.max() <= 1 and (first == again).all()


def test_the_reward_is_the_log_probability_of_the_digit_named() -> None:
    scans, digits = half_of_digits(JUDGE_HALF)
    images = [painted(scan, *PAPERS[0]) for scan in scans[:20]]
    table, right = log_probs(images), [f"a handwritten digit {WORDS[digit]}" for digit in digits[:20]]
    assert np.exp(table).sum(1) == pytest.approx(1, abs=11 * FLOOR) and table.min() >= np.log(FLOOR) - 1e-5
    reward = load_image_reward("digit")
    assert reward(right, images) == [table[row, digit] for row, digit in enumerate(digits[:20])]
    assert reward(["a cat", "the digit 4"], images[:2]) == [None, table[1, 4]]
    assert reward.failures == {"no finite number": 1}


def test_the_judge_is_right_or_wrong() -> None:
    scans, digits = half_of_digits(REWARD_HALF)
    images = [painted(scan, *PAPERS[2]) for scan in scans[:100]]
    judge, named = load_image_reward(JUDGE), judged(images)
    assert judge([f"digit {digit}" for digit in named], images) == [1.0] * 100
    assert judge([f"digit {(digit + 1) % 10}" for digit in digits[:100]], images).count(1.0) <= 5
    assert judge(["nothing", f"digit {named[1]}"], images[:2]) == [None, 1.0]


def mean(name: str, prompts: list[str], images: list[Image.Image]) -> float:
    return float(np.mean([value for value in load_image_reward(name)(prompts, images) if value is not None]))


def test_the_default_reward_does_not_pay_for_images_without_a_digit() -> None:
    """Flat images are the smallest of all: JPEG size alone prefers them to any digit, the default does not."""
    scans, digits = half_of_digits(JUDGE_HALF)
    prompts = [f"a handwritten digit {WORDS[digit]}" for digit in digits[:200]]
    drawn = [painted(scan, *PAPERS[place % 3]) for place, scan in enumerate(scans[:200])]
    flat = [Image.new("RGB", (32, 32), PAPERS[place % 3][0]) for place in range(200)]
    assert mean("jpeg-small", prompts, flat) > mean("jpeg-small", prompts, drawn)
    assert mean(DEFAULT_REWARD, prompts, flat) < mean(DEFAULT_REWARD, prompts, drawn) - 2


def test_a_digit_as_pale_as_the_default_reward_likes_is_still_seen_and_one_paler_than_that_is_none() -> None:
    scans, digits = half_of_digits(REWARD_HALF)
    prompts = [f"digit {digit}" for digit in digits[:100]]

    def faded(contrast: float) -> list[Image.Image]:
        ink = round(255 * (1 - contrast))
        return [painted(scan, (255, 255, 255), (ink, ink, ink)) for scan in scans[:100]]

    shades = {contrast: faded(contrast) for contrast in (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.0)}
    best = max(shades, key=lambda contrast: mean(DEFAULT_REWARD, prompts, shades[contrast]))
    assert 0.1 <= best < 1 and mean(JUDGE, prompts, shades[best]) >= 0.95
    assert mean(JUDGE, prompts, shades[0.01]) <= 0.2 and mean(JUDGE, prompts, shades[0.0]) == 0

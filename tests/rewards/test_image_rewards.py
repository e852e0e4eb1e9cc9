"""Image rewards by name: what they say, sums of them, and that no failure of a user's function ends a run."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from valence.errors import UserError
from valence.rewards.image_loading import load_image_reward, parse_sum
from valence.rewards.images import JUDGE
from valence.rewards.judge import SelfPlay

FLAT = Image.new("RGB", (32, 32), (200, 30, 90))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
STRIPES = Image.fromarray((np.indices((32, 32, 3))[0] // 4 % 2 * 255).astype(np.uint8))
IMAGES = [FLAT, STRIPES, NOISE]
PROMPTS = ["p", "p", "q"]


def written(tmp_path: Path, body: str) -> str:
    """The name of a reward whose function has this body."""
    lines = "\n    ".join(body.splitlines())
    (tmp_path / "mine.py").write_text(f"import time\ndef judge(images, prompts, metadata):\n    {lines}\n")
    return f"{tmp_path}/mine.py:judge"


def test_jpeg_size_is_that_of_the_file(tmp_path: Path) -> None:
    found = load_image_reward("jpeg-large")(PROMPTS, IMAGES, metadata=[{}] * 3)
    sizes = []
    for image in IMAGES:
        image.save(tmp_path / "kept.jpg", quality=95)
        sizes.append((tmp_path / "kept.jpg").stat().st_size / 1000)
    assert found == sizes and sizes[0] < sizes[1] < sizes[2]
    assert load_image_reward("jpeg-small")(PROMPTS, IMAGES, metadata=[{}] * 3) == [-size for size in sizes]


def test_a_function_gets_images_prompts_and_rows(tmp_path: Path) -> None:
    name = written(tmp_path, "return [image.width + row['add'] + len(prompt) for image, prompt, row in "
                             "zip(images, prompts, metadata, strict=True)]")  # fmt: skip
    judge = load_image_reward(name)
    assert judge(["a", "bc"], [FLAT, NOISE], metadata=[{"add": 1}, {"add": 0.5}]) == [34.0, 34.5]
    assert judge.name == name and not judge.failures


def test_images_come_as_rgb_copies_and_rows_may_be_missing(tmp_path: Path) -> None:
    darkens = "for image in images: image.paste((0, 0, 0), (0, 0, 32, 32))\n"
    name = written(
        tmp_path, darkens + "return [len(image.getbands()) + len(row) for image, row in zip(images, metadata)]"
    )
    gray = FLAT.convert("L")
    assert load_image_reward(name)(["p", "p"], [FLAT, gray]) == [3.0, 3.0]
    assert FLAT.getpixel((0, 0)) == (200, 30, 90) and gray.getpixel((0, 0)) != 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("if any(row.get('bad') for row in metadata): raise ZeroDivisionError('no such')\nreturn [1.0] * len(images)",
         "ZeroDivisionError: no such"),
        ("return [float('nan') if row.get('bad') else 1 for row in metadata]", "no finite number"),
        ("return [None if row.get('bad') else 1 for row in metadata]", "no finite number"),
        ("if any(row.get('bad') for row in metadata): time.sleep(30)\nreturn [1.0] * len(images)",
         "no answer in 0.3 s"),
    ],
)  # fmt: skip
def test_a_row_that_fails_costs_that_row_and_is_counted(tmp_path: Path, body: str, why: str) -> None:
    judge, began = load_image_reward(written(tmp_path, body), timeout=0.3), time.monotonic()
    assert judge(PROMPTS, IMAGES, metadata=[{}, {"bad": True}, {}]) == [1.0, None, 1.0]
    assert judge.failures == {why: 1} and time.monotonic() - began < 5


def test_a_function_that_is_wrong_altogether_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    judge = load_image_reward(written(tmp_path, "return [images[0].no_such]"))
    with pytest.raises(UserError, match=r"judged none of the first 3 images: AttributeError.*no_such"):
        judge(PROMPTS, IMAGES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpeg", r"^`judge`: 'jpeg' is none of jpeg-small, .*digit-judge.*sum:W\*A,W\*B.*file\.py:function"),
        ("", "is none of jpeg-small"),
        ("no_such_module:judge", "`judge`: no_such_module:judge cannot be loaded: ModuleNotFoundError"),
        ("missing.py:judge", "`judge`: missing.py does not exist: give file.py:function"),
        ("math:pi", "`judge`: math:pi is a float, and must be a function"),
        ("pairwise:nothing", "`judge`: 'nothing' is none of"),
        ("sum:", r"`judge`: sum:: '' must be NAME or WEIGHT\*NAME"),
        ("sum:jpeg-small,,digit", r"'' must be NAME or WEIGHT\*NAME"),
        ("sum:many*digit", r"'many\*digit' must be NAME or WEIGHT\*NAME"),
        ("sum:inf*digit", r"'inf\*digit' must be"),
        ("sum:2*", r"'2\*' must be"),
        ("sum:jpeg-small,pairwise:math:sqrt", "'pairwise:math:sqrt' cannot be part of a sum"),
        ("sum:2*jpeg", "`judge`: 'jpeg' is none of"),
        ("classifier:", "`judge`: classifier: needs a folder: classifier:FOLDER"),
        ("aesthetic", "`judge`: aesthetic needs a folder"),
    ],
)
def test_a_name_of_nothing_gives_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        load_image_reward(name, argument="judge")
    assert "\n" not in str(told.value)


def test_a_sums_weights() -> None:
    assert parse_sum("sum:jpeg-small,0.5*digit") == [(1.0, "jpeg-small"), (0.5, "digit")]
    assert parse_sum("sum: -2 * a.py:f, +1e-1*b") == [(-2.0, "a.py:f"), (0.1, "b")]


def test_a_sum_by_name(tmp_path: Path) -> None:
    mine = written(tmp_path, "return [row.get('mine') for row in metadata]")
    judge = load_image_reward(f"sum:jpeg-small,jpeg-large,-3*{mine}")
    assert judge(PROMPTS, IMAGES, metadata=[{"mine": 2}, {}, {"mine": -1}]) == [-6.0, None, 3.0]
    assert judge.failures == {"no finite number": 1} and judge.name.startswith("sum:")


def test_a_part_of_a_sum_that_hangs_is_left_behind(tmp_path: Path) -> None:
    name = written(tmp_path, "if any(row for row in metadata): time.sleep(30)\nreturn [1.0] * len(images)")
    judge = load_image_reward(f"sum:{name},0*jpeg-small", timeout=0.3)
    assert judge(PROMPTS, IMAGES, metadata=[{}, {"slow": 1}, {}]) == [1.0, None, 1.0]


def test_pairs_of_images_that_go_round_in_a_circle(tmp_path: Path) -> None:
    """Red beats green beats blue beats red; all beat black. Against all four, itself among them, a
    colour fares (1 + 1 - 1 + 0) / 4 and black (-3 + 0) / 4."""
    (tmp_path / "pairs.py").write_text(
        "def better(prompts, first, second):\n"
        "    kind = lambda image: max(range(3), key=image.getpixel((0, 0)).__getitem__)\n"
        "    dark = lambda image: sum(image.getpixel((0, 0))) == 0\n"
        "    return [0.0 if dark(a) else 1.0 if dark(b) else float((kind(b) - kind(a)) % 3 == 1)\n"
        "            for a, b in zip(first, second, strict=True)]\n"
    )
    judge = load_image_reward(f"pairwise:{tmp_path}/pairs.py:better")
    colours = [Image.new("RGB", (4, 4), colour) for colour in ("red", "black", "lime", "blue")]
    assert isinstance(judge, SelfPlay)
    found = judge(["p"] * 4 + ["alone"], [*colours, FLAT], metadata=[{}] * 5)
    assert found[:4] == pytest.approx([0.25, -0.75, 0.25, 0.25]) and found[4] is None
    assert judge(["q"] * 3, [colours[0], *colours[2:]]) == [0.0, 0.0, 0.0]


def test_a_pairwise_function_that_is_wrong_altogether_says_so_of_images(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text("def better(prompts, first, second):\n    return [7.0] * len(first)\n")
    judge = load_image_reward(f"pairwise:{tmp_path}/pairs.py:better")
    with pytest.raises(UserError, match=r"none of the first 1 pairs of images: ValueError: 7\.0 is no probability"):
        judge(["p", "p"], [FLAT, NOISE])


def test_the_watch_is_a_reward_by_name() -> None:
    assert load_image_reward(JUDGE).name == JUDGE and math.isinf(load_image_reward(JUDGE).timeout)  # pyright: ignore

"""Reward functions: what they say, and that no failure of theirs ends a run."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from valence.errors import UserError
from valence.rewards.functions import RewardFunction, last_number, rouge_l
from valence.rewards.loading import load_reward

PROMPTS = ["p", "p", "q"]
TEXTS = ["a b", "c", "d e f"]


def test_trl_functions_run_unchanged() -> None:
    """Keyword arguments, columns as lists, more columns than are taken."""

    def plain(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    def narrow(prompts: list[str], completions: list[str], target: list[int]) -> list[float]:
        return [float(wanted == len(text)) for text, wanted in zip(completions, target, strict=True)]

    assert RewardFunction(plain)(PROMPTS, TEXTS, other=[1, 2, 3]) == [3.0, 1.0, 5.0]
    assert RewardFunction(narrow)(PROMPTS, TEXTS, target=[3, 2, 5], other=[0] * 3) == [1.0, 0.0, 1.0]


def test_a_row_that_fails_costs_that_row_and_is_counted() -> None:
    def picky(completions: list[str], **_: Any) -> list[Any]:
        if "c" in completions:
            raise ZeroDivisionError("no c")
        return [1.0 for _ in completions]

    judge = RewardFunction(picky)
    assert judge(PROMPTS, TEXTS) == [1.0, None, 1.0]
    assert judge.failures == {"ZeroDivisionError: no c": 1}


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "many", [1.0]])
def test_what_is_no_number_is_none(bad: Any) -> None:
    judge = RewardFunction(lambda completions, **_: [bad, 2, True])
    assert judge(PROMPTS, TEXTS) == [None, 2.0, 1.0]
    assert judge.failures == {"no finite number": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0.5], "gave 1 number for 3 completions: [0.5]"),
        ([0.5] * 4, "gave 4 numbers for 3 completions: [0.5, 0.5, 0.5] …"),
        (0.5, "gave a float for 3 completions: 0.5"),
        (None, "gave a NoneType for 3 completions: None"),
        ({"a": 1}, "gave a dict for 3 completions: {'a': 1}"),
        ("123", "gave a str for 3 completions: '123'"),
        (torch.tensor(1.0), "gave a Tensor for 3 completions: tensor(1.)"),
    ],
)
def test_another_number_of_values_is_told_with_what_it_gave_and_an_example(given: Any, said: str) -> None:
    wanted = "it must give a list with a number, or None, for each of them, such as [0.5, 1.0, None]"
    with pytest.raises(UserError) as stop:
        RewardFunction(lambda completions, **_: given, name="few")(PROMPTS, TEXTS)
    assert str(stop.value) == f"the reward few {said}; {wanted}"


def test_later_on_it_costs_the_rows_and_not_the_run() -> None:
    judge = RewardFunction(lambda completions, **_: [1.0] * (len(completions) + ("c" in completions)))
    assert judge(["p"], ["a"]) == [1.0]
    assert judge(PROMPTS, TEXTS) == [1.0, None, 1.0]
    assert judge.failures == {"gave 2 numbers for 1 completions": 1}


def test_a_call_that_hangs_is_left_behind() -> None:
    def slow(completions: list[str], **_: Any) -> list[float]:
        if "c" in completions:
            time.sleep(5)
        return [1.0] * len(completions)

    judge, began = RewardFunction(slow, timeout=0.2), time.monotonic()
    assert judge(PROMPTS, TEXTS) == [1.0, None, 1.0]
    assert judge.failures == {"no answer in 0.2 s": 1} and time.monotonic() - began < 3


def test_after_some_that_hang_the_rest_is_not_waited_for() -> None:
    def slow(completions: list[str], **_: Any) -> list[float]:
        if fine:
            return [1.0] * len(completions)
        time.sleep(5)
        return []

    fine, judge = True, RewardFunction(slow, timeout=0.1)
    judge(PROMPTS, TEXTS)
    fine = False
    assert judge(["p"] * 9, ["t"] * 9) == [None] * 9
    assert judge.failures == {"no answer in 0.1 s": 3, "skipped after others gave no answer": 6}


def test_a_function_that_never_works_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"judged none of the first 3 completions: TypeError: .*answer"):
        load_reward("number")(PROMPTS, TEXTS)


def test_numbers_are_read_off_texts() -> None:
    assert last_number("12 apples, 3 pears: 1,015.50 in all") == 1015.5
    assert last_number("-4 or -7") == -7 and last_number("none") is None
    judge = load_reward("number")
    given = ["so it is 42.", "#### 41", "no idea"]
    assert judge(PROMPTS, given, answer=["6 * 7 = 42\n#### 42"] * 3) == [1.0, 0.0, 0.0]
    assert judge(PROMPTS, given, answer=["none", "41", "1"]) == [None, 1.0, 0.0]


def test_ready_ones() -> None:
    assert load_reward("length")(PROMPTS, TEXTS) == [2.0, 1.0, 3.0]
    assert load_reward("exact")(PROMPTS, [" A b ", "c", "x"], answer=["a B", "d", "x"]) == [1.0, 0.0, 1.0]
    assert load_reward("regex:^[a-c]")(PROMPTS, TEXTS) == [1.0, 1.0, 0.0]
    messages = [[{"role": "assistant", "content": "one two"}]]
    assert load_reward("length")([[{"role": "user", "content": "p"}]], messages) == [2.0]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_overlap_with_an_answer(name: str) -> None:
    pytest.importorskip("sacrebleu")
    near, far = load_reward(name)(["p"] * 2, ["the cat sat on the mat", "a dog"], answer=["the cat sat on the mat"] * 2)
    assert near == pytest.approx(1.0) and far is not None and far < 0.3


def test_rouge_by_hand() -> None:
    """The common subsequence is of words in order: "the cat mat" is 3 of 4 and 6 words, 2 · 3 / 10."""
    assert rouge_l("The cat, a mat!", "the cat sat on the mat") == 0.6
    # "police killed the gunman" against Lin's two: 3 of 4 and 4 words in order, and 2 of 4 and 4.
    assert rouge_l("police kill the gunman", "police killed the gunman") == 0.75
    assert rouge_l("the gunman kill police", "police killed the gunman") == 0.5
    assert rouge_l("a b c d", "d c b a") == 0.25 and rouge_l("a a a", "a") == 0.5
    assert rouge_l("", "a b") == 0.0 and rouge_l("a", " ... ") is None and rouge_l("été", "Été.") == 1.0
    assert load_reward("rouge")(PROMPTS, TEXTS, answer=["a b", "x", "d f"]) == [1.0, 0.0, 0.8]


def test_a_file_and_a_module_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def judge(completions, **_):\n    return [7.0] * len(completions)\nother = 3\n")
    assert load_reward(f"{tmp_path}/mine.py:judge")(PROMPTS, TEXTS) == [7.0] * 3
    assert load_reward("valence.rewards.functions:word_count")(PROMPTS, TEXTS) == [2.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-such", "^`reward`: 'no-such' is none of number, exact, length"),
        ("nowhere.py:judge", "^`reward`: nowhere.py does not exist"),
        ("no_such_module:judge", "cannot be loaded: ModuleNotFoundError"),
        ("valence.rewards.functions:nothing", "cannot be loaded: AttributeError"),
        ("valence.rewards.functions:PATIENCE", "must be a function"),
        ("regex:(", "is no regular expression"),
        ("pairwise:nobody", "behind pairwise:"),
        ("pairwise:valence.rewards.functions:PATIENCE", "must be a function"),
        ("mean:length,pairwise:a:b", "which an ensemble needs"),
        ("mean:judge:m@http://x,length", "an ensemble needs"),
    ],
)
def test_names_that_lead_nowhere(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_reward(name)

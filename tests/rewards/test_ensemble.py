"""Several judges as one, by hand; and what every judge reports to a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from valence.errors import UserError
from valence.rewards.ensemble import COMBINATIONS, Judge, cautious, ensemble, weighted_sum
from valence.rewards.functions import RewardFunction, as_judge, name_of
from valence.rewards.http_judge import PairJudge
from valence.rewards.image_loading import image_judge, load_image_reward
from valence.rewards.judge import PairFunction, SelfPlay
from valence.rewards.loading import load_reward


def test_ensembles_by_hand() -> None:
    def judge(*values: float | None) -> Any:
        return lambda **_: list(values)

    judges = [judge(1.0, 2.0, None), judge(3.0, 2.0, 1.0)]
    assert ensemble(judges, COMBINATIONS["mean"])([], []) == [2.0, 2.0, None]
    assert ensemble(judges, COMBINATIONS["worst"])([], []) == [1.0, 2.0, None]
    assert ensemble(judges, COMBINATIONS["cautious"])([], []) == [1.0, 2.0, None]
    assert ensemble(judges, partial(cautious, weight=0.5))([], []) == [1.5, 2.0, None]
    with pytest.raises(ValueError, match="at least one judge"):
        ensemble([], min)


def test_an_ensemble_by_its_name() -> None:
    assert load_reward("worst:length,regex:b")(["p", "p"], ["a b c", "b"]) == [1.0, 1.0]
    assert load_reward("mean:length,regex:b")(["p", "p"], ["a b c", "b"]) == [2.0, 1.0]
    with pytest.raises(UserError, match="needs two rewards or more"):
        load_reward("mean:length")


def test_a_sum_by_hand() -> None:
    """2*1 - 0.5*4 + 8 = 8; 2*3 - 0.5*2 + 0 = 5; the third has no second part and so no sum."""
    parts = ([1.0, 3.0, 5.0], [4.0, 2.0, None], [8.0, 0.0, 1.0])
    judges = [lambda own=own, **_: own for own in parts]
    assert ensemble(judges, weighted_sum((2.0, -0.5, 1.0)))([], []) == [8.0, 5.0, None]


def half(prompts: Any, first: Any, second: Any) -> list[float]:
    return [0.5] * len(prompts)


def pairs(path: Path) -> str:
    path.write_text("def half(prompts, first, second):\n    return [0.5] * len(prompts)\n")
    return f"pairwise:{path}:half"


def test_every_judge_has_a_name_failures_and_repeated_calls(tmp_path: Path) -> None:
    ring = pairs(tmp_path / "pairs.py")
    names = ["length", "regex:a", "mean:length,exact", ring, "judge:m@http://x"]
    images = ["jpeg-small", "sum:jpeg-small,2*jpeg-large", ring]
    loaded = [(load_reward(name), name) for name in names] + [(load_image_reward(name), name) for name in images]
    bare = [(PairFunction(half), "half"), (PairJudge("m", "http://x"), "m")]
    for judge, name in [*loaded, *bare, (SelfPlay(half, name="s"), "s")]:
        assert isinstance(judge, Judge) and judge.name == name_of(judge) == name
        assert dict(judge.failures) == {} and judge.repeated == 0


def test_a_judge_stays_and_a_function_is_made_safe() -> None:
    def own(completions: list[str], **_: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("one at a time")
        return [1.0]

    safe = as_judge(own, timeout=3.0)
    assert isinstance(safe, RewardFunction) and isinstance(safe, Judge) and safe.name == name_of(own) == "own"
    assert safe.timeout == 3.0 and as_judge(own, name="mine").name == "mine"
    assert as_judge(safe) is safe and image_judge(safe) is safe
    play = SelfPlay(half)
    assert as_judge(play) is play and image_judge(play) is play
    # What failed as a whole and was repeated row by row is counted.
    assert safe(["p", "q"], ["a", "b"]) == [1.0, 1.0] and safe.repeated == 1
    twice = PairFunction(lambda prompts, first, second: [1.0 / (len(prompts) == 1)])
    assert twice(["p"] * 2, ["a"] * 2, ["b"] * 2) == [1.0, 1.0] and twice.repeated == 1
    assert SelfPlay(twice).repeated == 1 and SelfPlay(half).repeated == 0

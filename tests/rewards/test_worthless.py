"""A reward model that learned nothing, or cannot, is said to be worthless."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from valence.data.records import Record
from valence.errors import UserError
from valence.rewards.training import Scored, check_learnable, doubt
from valence.runs.reward_model import reward_model


def scored(*values: float) -> list[Scored]:
    return [Scored(f"t{n}", value) for n, value in enumerate(values)]


def of_shape(shape: Any, number: int) -> list[Record]:
    return [Record(shape, "p", ("c",), (1.0,)) for _ in range(number)]


def test_rows_that_are_all_alike_are_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"^all 3 labels to train on are rejected: .* needs accepted rows too"):
        check_learnable(scored(-1, -1, -1), of_shape("label", 3))
    with pytest.raises(UserError, match=r"labels to train on are accepted: .* needs rejected rows too"):
        check_learnable(scored(1, 1), of_shape("label", 2))
    with pytest.raises(UserError, match=r"^all 2 scores to train on are 0\.5"):
        check_learnable(scored(0.5, 0.5), of_shape("score", 2))
    check_learnable(scored(0.5, 0.6), of_shape("score", 2))
    check_learnable(scored(1, -1), of_shape("label", 2))


@pytest.mark.parametrize(
    ("figures", "rows", "said"),
    [
        # Chance is 0.5; its standard error on 100 rows is 0.05, so 0.5 + 1.645 · 0.05 = 0.582 is the limit.
        ({"accuracy": 0.58}, 100, "its accuracy on 100 held-out rows is 0.58, no better than chance"),
        ({"accuracy": 0.59}, 100, ""),
        ({"accuracy": 1.0}, 2, "its accuracy on 2 held-out rows is 1.00, no better than chance"),
        ({"accuracy": 0.2}, 1000, "no better than chance"),
        ({"rmse": 0.1, "correlation": 0.16}, 100, "its correlation with 100 held-out rows is 0.16, no better"),
        ({"rmse": 0.1, "correlation": 0.17}, 100, ""),
        ({"rmse": 0.1, "correlation": -0.9}, 100, "no better than chance"),
        ({"rmse": 0.084}, 60, "it gives 60 held-out rows one score, or they have one, no better than chance"),
        ({}, 0, "no rows are held out"),
    ],
)
def test_held_out_rows_must_show_that_it_learned(figures: dict[str, float], rows: int, said: str) -> None:
    found = doubt(figures, rows)
    assert (said in found) if said else not found


@pytest.mark.parametrize("shape", ["pairs", "scores"])
def test_what_cannot_be_learned_is_warned_of_and_what_can_is_not(
    shape: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 120 pairs of texts the one with a is better, or a coin decides."""
    for name, learnable in (("noise", False), ("signal", True)):
        rows, coin = [], random.Random(0)
        for n in range(120):
            good, bad = (f"aaa{n}", f"zzz{n}") if learnable or coin.random() < 0.5 else (f"zzz{n}", f"aaa{n}")
            if shape == "pairs":
                rows.append({"prompt": "", "chosen": good, "rejected": bad})
            else:
                rows += [
                    {"prompt": "p", "completion": good, "score": 1},
                    {"prompt": "p", "completion": bad, "score": 0},
                ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        reward_model(
            path, model=tiny_llama, out=tmp_path / name, max_steps=40, lr=3e-3, threads=1, eval_fraction=0.2,
            kind=shape,
        )  # fmt: skip
        said = capsys.readouterr().out
        warned = "warning: the reward model may be worthless: its " in said and "no better than chance" in said
        assert warned == (not learnable), said

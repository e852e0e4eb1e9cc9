"""Tables of the text task: the choice among settings, and means over seeds."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.language.table import average, choose


def _row(lr: float, kl: float, objective: float) -> dict[str, Any]:
    return {"name": "m", "options": {"lr": lr}, "kl": kl, "objective": objective}


def test_tuning_takes_the_best_within_the_limit_and_else_the_nearest() -> None:
    grids = {"m": [{"lr": 1e-4}, {"lr": 1e-3}], "untried": [{"lr": 0.5}]}
    rows = [_row(1e-4, 3.0, 1.0), _row(1e-3, 20.0, 5.0)]
    assert choose(rows, grids) == {"m": {"lr": 1e-4}, "untried": {"lr": 0.5}}
    assert choose([_row(1e-4, 3.0, 1.0), _row(1e-3, 11.0, 5.0)], grids)["m"] == {"lr": 1e-3}
    assert choose([_row(1e-4, 30.0, 1.0), _row(1e-3, 20.0, 0.5)], grids)["m"] == {"lr": 1e-3}


def test_average_is_over_seeds_and_counts_them() -> None:
    figures = {"distinct_2": 0.5, "ordinary_text_nll": 4.0}
    rows = [
        {"name": "a", "options": {"lr": 0.1}, "reward": value, "win": 50.0, "judge": 0.0, "kl": 2.0,
         "win_at_equal_length": 50.0, "figures": figures}
        for value in (1.0, 3.0)
    ]  # fmt: skip
    (line,) = average(rows)
    assert line["seeds"] == 2 and line["reward"] == 2.0 and line["reward_sd"] == pytest.approx(2**0.5)
    assert line["win_sd"] == 0.0 and line["lr"] == "0.1"

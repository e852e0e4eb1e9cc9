"""The matrix games of the general-preference experiment: gaps by hand, exact and sampled self-play."""

from __future__ import annotations

import pytest
import torch

from experiments.general_preference.games import (
    RATED,
    SPO,
    Curve,
    Setting,
    duality_gap,
    exact_rated,
    exact_row,
    exact_self_play,
    fit_bradley_terry,
    has_winner,
    make_games,
    play,
    play_row,
    rate,
    sampled_scores,
    start_policy,
)  # fmt: skip


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_games_are_preferences_and_gaps_are_those_worked_by_hand() -> None:
    games = make_games()
    for win in games.values():
        torch.testing.assert_close(win + win.mT, torch.ones_like(win))
        assert float(win.min()) >= 0
        assert float(start_policy(len(win)).sum()) == pytest.approx(1)
    # The first loses to the third and beats the second: the third gains 0.8 and loses 0.1.
    circle = games["rock-paper-scissors"]
    assert float(duality_gap(circle, start_policy(3))) == pytest.approx(1.4)
    assert float(duality_gap(circle, vector(1, 1, 1) / 3)) == pytest.approx(0)
    # Each action is played as often as the other two's edge says: (0.5, 0.8, 0.2) / 1.5.
    assert float(duality_gap(games["biased cycle"], vector(0.5, 0.8, 0.2) / 1.5)) == pytest.approx(0)


def test_a_winner_beats_all_others() -> None:
    assert not has_winner(make_games()["rock-paper-scissors"])
    assert has_winner(torch.tensor([[0.5, 0.6, 0.9], [0.4, 0.5, 0.2], [0.1, 0.8, 0.5]], dtype=torch.float64))


def test_the_curve_averages_the_iterates_so_far() -> None:
    curve = Curve.of(make_games()["rock-paper-scissors"], torch.eye(3, dtype=torch.float64))
    assert curve.last == pytest.approx([2, 2, 2])
    assert curve.average == pytest.approx([2, 1, 0])
    assert curve.thinned()["iteration"] == [1, 2, 3]


def test_exact_self_play_is_mirror_descent_and_its_average_arrives() -> None:
    win = make_games()["biased cycle"]
    policies = exact_self_play(win, eta=0.1, steps=10_000)
    weight = policies[0] * torch.exp(0.1 * ((2 * win - 1) @ policies[0]))
    torch.testing.assert_close(policies[1], weight / weight.sum())
    assert float(duality_gap(win, policies.mean(0))) < 0.02 < 0.2 < float(duality_gap(win, policies[-1]))
    assert rate("rock-paper-scissors", (100, 1000))["slope"] < -0.4


def test_bradley_terry_finds_scores_that_made_the_comparisons_and_a_corner_of_a_circle() -> None:
    scores = vector(0.7, -0.5, -0.2)
    win = torch.sigmoid(scores[:, None] - scores)
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(-1)
    found = fit_bradley_terry(first, second, win[first, second], torch.ones(9), 3)
    torch.testing.assert_close(found, scores, rtol=0, atol=2e-3)
    circle = make_games()["rock-paper-scissors"]
    assert exact_rated(circle, eta=0.1, steps=2000)[-1].max() > 0.99
    # Votes say what all comparisons say: the third action beats the first, which is most often there.
    votes = sampled_scores(circle, comparisons=2000, seed=0)
    assert int(votes.argmax()) == int(exact_rated(circle, eta=0.1, steps=2000)[-1].argmax()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", [SPO, RATED])
def test_the_learner_finds_the_action_that_wins(method: str) -> None:
    win = torch.tensor([[0.5, 0.1, 0.1], [0.9, 0.5, 0.2], [0.9, 0.8, 0.5]], dtype=torch.float64)
    policies = play(win, method, eta=0.3, iterations=120, seed=0)
    torch.testing.assert_close(policies[0], start_policy(3), rtol=0, atol=2e-3)
    assert float(policies[-1, 2]) > 0.9


def test_rows_hold_the_gaps_of_start_average_and_last() -> None:
    setting = Setting(SPO, 3, "rock-paper-scissors", 0.1, 4)
    exact, sampled = exact_row(setting), play_row(setting)
    for row in (exact, sampled):
        assert row["gap_start"] == pytest.approx(1.4, abs=0.01) and row["curve"]["iteration"] == [1, 2, 3, 4]
        assert row["gap_average"] == row["curve"]["average"][-1] and row["gap_last"] == row["curve"]["last"][-1]
        assert (row["game"], row["method"], row["iterations"]) == ("rock-paper-scissors", SPO, 4)
    assert "seed" not in exact and sampled["seed"] == 3 and sum(sampled["average"]) == pytest.approx(1)

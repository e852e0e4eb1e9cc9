"""The general-preference experiment: its games, its oracle, its rules, and its smoke size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from valence.reproduce.general_preference import ETAS, LRS, average, choose, run
from valence.reproduce.general_preference_claims import check_claims
from valence.reproduce.general_preference_games import (
    RATED,
    SPO,
    Curve,
    duality_gap,
    exact_rated,
    exact_self_play,
    fit_bradley_terry,
    has_winner,
    make_games,
    play,
    rate,
    sampled_scores,
    start_policy,
)
from valence.reproduce.general_preference_text import (
    COMMON,
    WIN,
    Diary,
    Oracle,
    gap_by_prompt,
    gap_floor,
    kind_of,
    read_prompts,
)
from valence.rewards.judge import SelfPlay


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


@pytest.mark.parametrize("method", [SPO, RATED])
def test_the_learner_finds_the_action_that_wins(method: str) -> None:
    win = torch.tensor([[0.5, 0.1, 0.1], [0.9, 0.5, 0.2], [0.9, 0.8, 0.5]], dtype=torch.float64)
    policies = play(win, method, eta=0.3, iterations=120, seed=0)
    torch.testing.assert_close(policies[0], start_policy(3), rtol=0, atol=2e-3)
    assert float(policies[-1, 2]) > 0.9


def test_kinds_and_the_oracle_go_in_a_circle() -> None:
    assert [kind_of(text) for text in (" a , b .", "a . b ,", " why ? ,", "a b", "")] == [0, 1, 1, 2, 2]
    torch.testing.assert_close(WIN + WIN.mT, torch.ones_like(WIN))
    assert not has_winner(WIN)
    votes = Oracle(0)([""] * 2000, [","] * 2000, ["."] * 2000)
    assert set(votes) == {0.0, 1.0}
    assert sum(vote or 0 for vote in votes) / 2000 == pytest.approx(0.9, abs=0.03)


def test_prompts_are_four_words_each_once() -> None:
    prompts = read_prompts(64)
    assert len(set(prompts)) == 64
    assert {len(prompt.split()) for prompt in prompts} == {4}


def test_the_diary_keeps_training_and_passes_over_evaluations() -> None:
    diary = Diary(["p", "q"])
    diary.note(["p", "p", "q", "q"], [",", ".", "x", ","])
    diary.note(["p", "q", "p", "q"], [",", ",", ",", ","])
    assert len(diary.counts) == 1
    assert diary.counts[0].tolist() == [[1, 1, 0], [1, 0, 1]]
    assert diary.shares()[0].tolist() == [0.5, 0.25, 0.25]


def test_gaps_by_prompt_and_what_sampling_adds_to_them() -> None:
    # Against commas alone nothing gains more than none: 0.8, so 1.6; the even prompt adds 0; the unseen is left out.
    counts = torch.tensor([[5, 0, 0], [4, 4, 4], [0, 0, 0]])
    assert gap_by_prompt(counts) == pytest.approx(0.8)
    few, many = (gap_floor(torch.full((8, 3), number)) for number in (4, 400))
    assert 0 < many < 0.1 < few


def test_spo_takes_a_judges_comparisons_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four completions each has won or lost three: an odd number of quarters. A ranking of them has ties."""
    from valence.runs.improve import improve
    from valence.training.learner import Learner

    class Enough(Exception):
        pass

    seen: list[Any] = []

    def spy(self: Learner, batch: Any, **more: Any) -> None:
        seen.append(batch.feedback)
        raise Enough

    monkeypatch.setattr(Learner, "update", spy)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in read_prompts(8)))
    options = COMMON | {"eval_samples": 2, "batch_size": 8, "num_samples": 4, "quiet": True}
    with pytest.raises(Enough):
        improve(file, model="small-lm", out=tmp_path / "run", reward=SelfPlay(Oracle(0)), method="spo", **options)
    assert {abs(value) for value in seen[0].value.flatten().tolist()} <= {0.25, 0.75}
    torch.testing.assert_close(seen[0].value.sum(-1), torch.zeros(8))


def test_choose_takes_the_least_gap_over_games() -> None:
    rows = [{"eta": eta, "gap_average": gap} for eta, gap in ((0.1, 0.5), (0.1, 0.1), (0.3, 0.2), (0.3, 0.2))]
    assert choose(rows, "eta") == 0.3
    assert choose([{"options": {"lr": lr}, "gap_average": lr} for lr in LRS], "options") == {"lr": min(LRS)}
    assert len(ETAS) == len(LRS) == 3


def text_row(method: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "game": "text", "method": method, "seed": seed, "options": {"lr": 1e-4}, "gap_start": 0.8, "gap_average": 0.1,
        "gap_last": 0.5, "gap_start_by_prompt": 0.9, "gap_average_by_prompt": 0.3, "gap_last_by_prompt": 0.6,
        "average_floor": 0.1, "last_floor": 0.2, "last": [0.9, 0.1, 0.0], "average": [0.4, 0.3, 0.3],
        "shares": [[0.2, 0.1, 0.7]], "kl_iterates": 1.0, "kl_last": 2.0,
    } | more  # fmt: skip


def test_lines_are_means_over_seeds() -> None:
    (line,) = average([text_row(SPO, 0), text_row(SPO, 1, gap_average=0.3)], "improve")
    assert line["gap_average"] == pytest.approx(0.2)
    assert line["gap_average_sd"] == pytest.approx(0.02**0.5)
    assert (line["shares_average"], line["kl"], line["setting"]) == ("0.40 / 0.30 / 0.30", "1.00 / 2.00", "lr=0.0001")


def test_claims_can_fail() -> None:
    name = "rock-paper-scissors"

    def row(method: str, gap: float, last: float) -> dict[str, Any]:
        return {"game": name, "method": method, "gap_average": gap, "gap_last": last}

    def holds(gap: float, slope: float, rated: float, share: float) -> list[bool]:
        games = [row(SPO, gap, 1.0), row(RATED, rated, rated)]
        theirs = text_row(RATED, 0, gap_average=rated, gap_last=rated, last=[share, 1 - share, 0.0])
        ours = text_row(SPO, 0, gap_average=gap, gap_average_by_prompt=gap)
        return [claim.holds for claim in check_claims(games, [{"slope": slope}], games, [ours, theirs])]

    assert holds(0.01, -0.5, 1.5, 0.9) == [True] * 11
    assert holds(1.2, -0.3, 0.9, 0.7) == [False] * 11


def test_smoke(tmp_path: Path) -> None:
    path = run(tmp_path, "smoke", workers=2)
    result = json.loads(path.read_text())
    assert set(result) >= {"name", "rows", "claims", "command", "commit", "seeds", "machine"}
    assert [(line["form"], line["method"]) for line in result["rows"]] == [
        (form, method) for form in ("exact", "sampled", "improve") for method in (SPO, RATED)
    ]
    exact = {line["method"]: line["gap_average"] for line in result["rows"] if line["form"] == "exact"}
    assert exact[SPO] < 0.02 < 1 < exact[RATED]
    written = [row for row in result["per_seed"] if row["game"] == "text"]
    assert all(len(row["shares"]) == 2 and row["kl_last"] != 0 for row in written)
    assert (tmp_path / "general-preference.png").stat().st_size > 1000
    assert "holds" in (tmp_path / "README.md").read_text()

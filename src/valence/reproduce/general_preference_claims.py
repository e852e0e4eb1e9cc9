"""What `general-preference` is to show, and whether it did."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from valence.reproduce.general_preference_games import RATED, SPO, has_winner, make_games
from valence.reproduce.results import Claim

Rows = Sequence[Mapping[str, Any]]
THEOREM = "Theorem 2: DG of the average <= O(1/√T + √ε)"
CYCLE = "no reward orders a circle (section D)"
SLOPE, NEAR = -0.45, 0.1


def check_claims(exact: Rows, rates: Rows, played: Rows, written: Rows) -> list[Claim]:
    """The claims, on exact runs, their rates, sampled runs, and runs on text; `rows` as their makers give them."""
    return [*_exact(exact, rates), *_sampled(played), *_text(written)]


def _exact(exact: Rows, rates: Rows) -> list[Claim]:
    circle = {row["method"]: row for row in exact if row["game"] == "rock-paper-scissors"}
    spo, rated = circle[SPO]["gap_average"], circle[RATED]["gap_last"]
    slopes = [row["slope"] for row in rates]
    return [
        Claim("exact, rock-paper-scissors: SPO's average has a gap below 0.02", THEOREM, f"{spo:.4f}", spo < 0.02),
        Claim("exact, rock-paper-scissors: Bradley-Terry + REBEL ends above 1", CYCLE, f"{rated:.2f}", rated > 1),
        Claim(
            f"exact, every game: the average's gap falls as T^-1/2 or faster (slope <= {SLOPE})", THEOREM,
            f"slopes {', '.join(f'{slope:.2f}' for slope in slopes)}", max(slopes) <= SLOPE,
        ),
    ]  # fmt: skip


def _mean(rows: Rows, game: str, method: str, name: str) -> float:
    return statistics.fmean(row[name] for row in rows if (row["game"], row["method"]) == (game, method))


def _sampled(played: Rows) -> list[Claim]:
    games = list(dict.fromkeys(row["game"] for row in played))
    spo, last = ({game: _mean(played, game, SPO, name) for game in games} for name in ("gap_average", "gap_last"))
    rated = {game: min(_mean(played, game, RATED, name) for name in ("gap_average", "gap_last")) for game in games}
    circles = [game for game in games if not has_winner(make_games()[game])]
    told = f"{len(circles)} of {len(games)} games"
    return [
        Claim(
            f"sampled, every game: SPO's average has a gap below {NEAR}", THEOREM, _by_game(spo),
            all(gap < NEAR for gap in spo.values()),
        ),
        Claim(
            "sampled, games without one best action: SPO's average is nearer than its last iterate",
            "the theorem is about the average", f"last {_by_game(last)} ({told})",
            all(spo[game] < last[game] for game in circles),
        ),
        Claim(
            "sampled, games without one best action: SPO's average is nearer than Bradley-Terry + REBEL's average and "
            "last iterate", CYCLE, f"theirs {_by_game(rated)} ({told})",
            all(spo[game] < rated[game] for game in circles),
        ),
    ]  # fmt: skip


def _by_game(gaps: Mapping[str, float]) -> str:
    return ", ".join(f"{gap:.2f}" for gap in gaps.values())


def _text(written: Rows) -> list[Claim]:
    spo = [row for row in written if row["method"] == SPO]
    rated = [row for row in written if row["method"] == RATED]

    def listed(rows: Rows, name: str) -> str:
        return ", ".join(f"{row[name]:.2f}" for row in rows)

    top = [max(row["last"]) for row in rated]
    return [
        Claim(
            "text, every seed: SPO's average has less than half of the start's gap", THEOREM,
            f"{listed(spo, 'gap_average')} against {listed(spo, 'gap_start')}",
            all(row["gap_average"] < row["gap_start"] / 2 for row in spo),
        ),
        Claim(
            "text, every seed, against the best kind for each prompt: the same", THEOREM,
            f"{listed(spo, 'gap_average_by_prompt')} (an even policy would show {listed(spo, 'average_floor')})",
            all(row["gap_average_by_prompt"] < row["gap_start_by_prompt"] / 2 for row in spo),
        ),
        Claim(
            "text, every seed: SPO's average is nearer than its last iterate", "the theorem is about the average",
            f"last {listed(spo, 'gap_last')}", all(row["gap_average"] < row["gap_last"] for row in spo),
        ),
        Claim(
            "text, every seed: SPO's average is nearer than Bradley-Terry + REBEL's average and last iterate", CYCLE,
            f"average {listed(rated, 'gap_average')}, last {listed(rated, 'gap_last')}",
            all(one["gap_average"] < min(other["gap_average"], other["gap_last"])
                for one, other in zip(spo, rated, strict=True)),
        ),
        Claim(
            "text, every seed: Bradley-Terry + REBEL ends with one kind above 0.8", CYCLE,
            ", ".join(f"{share:.2f}" for share in top), all(share > 0.8 for share in top),
        ),
    ]  # fmt: skip

"""The language reproductions' smoke sizes, their task, tuning and claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valence.cli.main import main
from valence.reproduce.language_table import average, tune
from valence.reproduce.sentences import Task, TaskSize, prepare
from valence.reproduce.thumbs_data import read_sentences, split_sentences


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """The smoke size's, fitted once."""
    return prepare(tmp_path_factory.mktemp("task"), TaskSize(1, 8))


def test_no_prompt_that_is_looked_at_is_learned_from(task: Task) -> None:
    learned = {json.loads(line)["prompt"] for line in task.prompts.read_text().splitlines()}
    halves = split_sentences(read_sentences())
    held = {row["completion"] for row in halves.heldout}
    pairs = [json.loads(line) for line in task.pairs.read_text().splitlines()]
    fitted = {row[side] for row in pairs for side in ("chosen", "rejected")}
    assert len(task.references()) == 8 and len(learned) > 4000
    assert all(prompt + rest in held for prompt, rest in task.references().items())
    assert not fitted & held and not fitted & {row["completion"] for row in halves.judge}
    accepted = {row["completion"] for row in halves.feedback if row["accept"]}
    assert all(row["chosen"] in accepted and row["rejected"] not in accepted for row in pairs)


@pytest.mark.parametrize("name", ["summarize", "best-worst", "pmpo-language"])
def test_smoke(name: str, task: Task, tmp_path: Path) -> None:
    out = tmp_path / name
    out.mkdir()
    (out / "task").symlink_to(task.folder)
    main(["reproduce", name, "--smoke", "--out", str(out)])
    result = json.loads((out / "results.json").read_text())
    assert result["name"] == name and result["claims"] and len(result["rows"]) >= 2
    assert all(isinstance(claim["holds"], bool) for claim in result["claims"])
    assert (out / f"{name}.png").stat().st_size > 5000 and "## Claims" in (out / "README.md").read_text()
    # What was run is kept: a second call trains nothing.
    kept = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    main(["reproduce", name, "--smoke", "--out", str(out)])
    assert kept and kept == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}


def _row(lr: float, kl: float, objective: float) -> dict[str, Any]:
    return {"name": "m", "options": {"lr": lr}, "kl": kl, "objective": objective}


def test_tuning_takes_the_best_within_the_limit_and_else_the_nearest() -> None:
    grids = {"m": [{"lr": 1e-4}, {"lr": 1e-3}], "untried": [{"lr": 0.5}]}
    rows = [_row(1e-4, 3.0, 1.0), _row(1e-3, 20.0, 5.0)]
    assert tune(rows, grids) == {"m": {"lr": 1e-4}, "untried": {"lr": 0.5}}
    assert tune([_row(1e-4, 3.0, 1.0), _row(1e-3, 11.0, 5.0)], grids)["m"] == {"lr": 1e-3}
    assert tune([_row(1e-4, 30.0, 1.0), _row(1e-3, 20.0, 0.5)], grids)["m"] == {"lr": 1e-3}


def test_average_is_over_seeds_and_says_how_many() -> None:
    figures = {"distinct_2": 0.5, "ordinary_text_nll": 4.0}
    rows = [
        {"name": "a", "options": {"lr": 0.1}, "reward": value, "win": 50.0, "judge": 0.0, "kl": 2.0,
         "win_at_equal_length": 50.0, "figures": figures}
        for value in (1.0, 3.0)
    ]  # fmt: skip
    (line,) = average(rows)
    assert line["seeds"] == 2 and line["reward"] == 2.0 and line["reward_sd"] == pytest.approx(2**0.5)
    assert line["win_sd"] == 0.0 and line["lr"] == "0.1"

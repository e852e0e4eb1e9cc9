"""The text task: separate parts of the data; and the smoke sizes of the experiments on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.language.task import Task, TaskSize, make_pairs, prepare, split_prompts
from valence.rewards.sentences import read_sentences, split_sentences


def test_prompts_are_the_first_words_of_long_enough_sentences() -> None:
    texts = ["a b c d e f g h", "a b c d x x x x", "too short"]
    assert split_prompts([{"completion": text} for text in texts]) == {"a b c d": " e f g h"}


def test_each_pair_has_a_positive_and_a_negative_sentence_in_two_orders() -> None:
    rows = [{"completion": str(n), "accept": n % 2 == 0} for n in range(40)]
    pairs = make_pairs(rows)
    assert len(pairs) == 40 and all(int(row["chosen"]) % 2 == 0 and int(row["rejected"]) % 2 == 1 for row in pairs)
    assert len({row["chosen"] for row in pairs[:20]}) == 20 and pairs[:20] != pairs[20:]
    assert make_pairs(rows) == pairs


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """The smoke size's, fitted once."""
    return prepare(tmp_path_factory.mktemp("task"), TaskSize(1, 8))


@pytest.mark.slow
def test_no_evaluation_prompt_is_learned_from(task: Task) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["summarize", "best-worst", "pmpo-language"])
def test_smoke(name: str, task: Task, tmp_path: Path) -> None:
    out = tmp_path / name
    out.mkdir()
    (out / "task").symlink_to(task.folder)
    main([name, "--smoke", "--out", str(out)])
    result = json.loads((out / "results.json").read_text())
    assert result["name"] == name and result["claims"] and len(result["rows"]) >= 2
    assert all(isinstance(claim["holds"], bool) for claim in result["claims"])
    assert "## Claims" in (out / "README.md").read_text()
    # A second call trains nothing.
    rows = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    main([name, "--smoke", "--out", str(out)])
    assert rows and rows == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}

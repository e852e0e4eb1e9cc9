"""Evaluations of language and image runs: which prompts and rows they use, and what judge and report get from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import helpers
from helpers import END
from valence.data.collate import EncodedGroup
from valence.data.groups import Group
from valence.evaluation.images import ImageEvaluation
from valence.evaluation.samples import Evaluation, Samples
from valence.training.reference import FrozenCopy

PROMPTS = [[4 + n] for n in range(5)]
ROWS = [EncodedGroup(ids, [[5, END], [6, END]], Group("p", ("a", "b"), wins=((0, 1, 1.0, None),))) for ids in PROMPTS]


def evaluation(**options: Any) -> Evaluation:
    policy = helpers.policy("llama")
    options = {"num_samples": 8, "num_rows": 2, "seed": 3} | options
    return Evaluation(policy, FrozenCopy(policy), PROMPTS, **options)


def test_samples_and_rows_are_a_random_part_and_prompts_are_used_again_in_turn() -> None:
    ours = evaluation(rows=ROWS[:4])
    # All five prompts in a shuffled order, then the first three of them again.
    assert sorted(ours.prompt_index[:5]) == [0, 1, 2, 3, 4] != ours.prompt_index[:5]
    assert ours.prompt_index[5:] == ours.prompt_index[:3] and ours.prompts == [PROMPTS[n] for n in ours.prompt_index]
    # Rows in the same order; the fifth prompt has none.
    assert ours.rows == [ROWS[n] for n in ours.prompt_index[:5] if n < 4][:2]
    assert evaluation().prompt_index == ours.prompt_index != evaluation(seed=4).prompt_index


def test_the_policy_as_it_began_has_no_kl_and_a_changed_one_has() -> None:
    judged: list[Samples] = []

    def judge(samples: Samples) -> dict[str, float]:
        judged.append(samples)
        return {"reward": 2.0, "mean_words": -1.0}

    ours = evaluation(rows=ROWS, judge=judge)
    figures = ours(0)
    assert figures["kl_policy_ref"] == pytest.approx(0, abs=1e-5) == figures["kl_ref_policy"]
    assert figures["implicit_reward_accuracy"] == 0.5 and figures["reward"] == 2.0
    # The judge's figures do not replace those that are measured.
    assert figures["mean_words"] >= 0
    assert judged[0].outputs == judged[0].initial_outputs and judged[0].step == 0
    helpers.shake(ours.policy, size=0.3)
    changed = ours(7)
    assert min(changed["kl_policy_ref"], changed["kl_ref_policy"], ours.kl(7)) > 1e-3
    last = judged[1]
    assert (last.step, last.prompt_index) == (7, ours.prompt_index) and last.outputs != last.initial_outputs
    assert sum(last.kl) / 8 == pytest.approx(changed["kl_policy_ref"], rel=1e-6)
    # The same seed at every evaluation.
    assert ours(8) == changed
    rows = ours.samples()
    assert [row["before"] for row in rows] == list(last.initial_outputs)
    assert [row["after"] for row in rows] == list(last.outputs) and ours.section(7) == ""


def grids(out: Path, steps: list[int], prompts: int, columns: int) -> ImageEvaluation:
    image = pytest.importorskip("PIL.Image")
    found = object.__new__(ImageEvaluation)
    found.out, found.columns = out, columns
    found.prompt_index = [place % prompts for place in range(12)]
    found.prompts = [f"<{place}>" for place in found.prompt_index]
    (out / "grids").mkdir(exist_ok=True)
    for step in steps:
        image.new("RGB", (1, 1)).save(out / "grids" / f"step-{step:06d}.png")
    return found


def test_the_report_shows_the_first_grid_the_last_and_a_few_between(tmp_path: Path) -> None:
    ours = grids(tmp_path, list(range(0, 110, 10)), prompts=2, columns=2)
    titles = re.findall("<h3>(.*?)</h3>", ours.section(100))
    assert titles == ["before (step 0)", "step 20", "step 40", "step 60", "step 80", "step 100"]
    # Grids of later steps, of a run that was cut off, are not shown.
    assert re.findall("<h3>(.*?)</h3>", ours.section(20)) == ["before (step 0)", "step 10", "step 20"]
    assert "one column for each of: &lt;0&gt;; &lt;1&gt;." in ours.section(0)


def test_more_prompts_than_columns_are_named_in_turn(tmp_path: Path) -> None:
    ours = grids(tmp_path, [0], prompts=11, columns=10)
    assert "row by row, in turn: " + "; ".join(f"&lt;{n}&gt;" for n in range(11)) in ours.section(0)
    assert ours.samples() == []

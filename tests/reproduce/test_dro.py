"""The DRO experiment: its prompts, labels by mini-batch, scores, what is claimed when, and its smoke size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from valence.policies.loading import load_language_policy
from valence.reproduce import dro
from valence.reproduce.dro import SHARING, TUNED, UNTUNED, best, run, sweeps
from valence.reproduce.dro_claims import PAPER, check_claims, compare_lines, interval, plot, sweep_lines
from valence.reproduce.dro_data import (
    NEW_TOKENS,
    Scorer,
    Stranger,
    minibatch_labels,
    sft_rows,
    split_prompts,
    write_feedback,
)
from valence.reproduce.dro_runs import FOLDS, LR_FACTOR, SIZES, Setting, side_by_side
from valence.reproduce.thumbs_data import read_sentences, split_sentences
from valence.runs.config import align_config
from valence.runs.data import encode_feedback, read_feedback
from valence.sources.offline import OfflineSource


def test_the_three_parts_share_no_prompt_and_sft_sees_none_of_two() -> None:
    prompts = split_prompts(256, 1000)
    train, select, evaluate = map(set, prompts)
    assert (len(select), len(evaluate)) == (256, 1000)
    assert not train & select and not train & evaluate and not select & evaluate
    assert all(len(prompt.split()) == 4 for part in prompts for prompt in part)
    tokenizer = load_language_policy("small-lm").tokenizer
    rows = sft_rows(tokenizer, prompts, 30)
    assert len(rows) == 30
    sentences = [row["completion"] for part in split_sentences(read_sentences()) for row in part]
    for row in rows:
        # Some sentences end alike: one whose beginning is open must be among them.
        ends = [text for text in sentences if text.endswith(row["prompt"] + row["completion"])]
        assert any(" ".join(text.split()[:4]) not in select | evaluate for text in ends)
        assert len(tokenizer(row["completion"], add_special_tokens=False)["input_ids"]) < NEW_TOKENS


def test_the_scorer_knows_sentiment_from_the_half_that_the_judge_does_not_see() -> None:
    halves = split_sentences(read_sentences())
    scorer, judge = Scorer(halves.feedback), Stranger()
    for score in (scorer, judge):
        good, bad = score(["a warm , funny", "a dull , lifeless"], [" and moving film .", " and pointless mess ."])
        assert good > 0 > bad
        found = score([""] * 1057, [row["completion"] for row in halves.heldout])
        right = [(value > 0) == row["accept"] for value, row in zip(found, halves.heldout, strict=True)]
        assert sum(right) / len(right) > 0.7


def test_kto_accepts_what_is_above_the_mean_of_the_very_batch_it_stands_in(tmp_path: Path) -> None:
    """Through the files and `align`'s own reader: every batch of the first epoch has the scores' mean as its bar."""
    scores = [(7 * place) % 23 + place / 100 for place in range(70)]
    rows = [{"prompt": f"p {n}", "completion": f" c {n} .", "score": score} for n, score in enumerate(scores)]
    path = write_feedback(tmp_path / "kto.jsonl", rows, method="kto", batch_size=32, seed=3)
    config = align_config(feedback=path, model="small-lm", out=str(tmp_path), method="kto", eval_fraction=0.0, seed=3)
    feedback = read_feedback(config, lambda line: None)
    from valence.data.collate import Encoder

    encoder = Encoder(load_language_policy("small-lm").tokenizer, encoder_decoder=True)
    data = encode_feedback(feedback, encoder, tmp_path, strict=True, say=lambda line: None)
    source = OfflineSource(data.train, batch_size=32, pad=2, seed=3)
    known = {tuple(row.completions[0]): score for row, score in zip(data.train, scores, strict=True)}
    accepted = 0
    for size in (32, 32, 6):
        batch = source.next()
        mine = [known[tuple(row[mask].tolist())] for row, mask in
                zip(batch.action.steps[:, 0], batch.action.mask[:, 0], strict=True)]  # fmt: skip
        assert len(mine) == size
        signs = batch.feedback.sign[:, 0].tolist()  # pyright: ignore[reportAttributeAccessIssue]
        assert signs == [1 if score > sum(mine) / size else -1 for score in mine]
        accepted += signs.count(1)
    other = minibatch_labels(scores, batch_size=32, seed=4)
    assert sum(other) != accepted or other != [group.sign == (1,) for group in data.groups]


def test_dro_takes_the_scores_themselves(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "completion": f" c {n} .", "score": float(n)} for n in range(5)]
    path = write_feedback(tmp_path / "dro.jsonl", rows, method="dro", batch_size=32, seed=0)
    config = align_config(feedback=path, model="small-lm", out=str(tmp_path), method="dro", eval_fraction=0.0)
    groups = read_feedback(config, lambda line: None).train
    assert [group.reward for group in groups] == [
        pytest.approx((value,), abs=1e-6) for value in (-(2**0.5), -(0.5**0.5), 0.0, 0.5**0.5, 2**0.5)
    ]


def test_the_sweeps_are_the_papers_and_align_takes_them() -> None:
    plan = sweeps()
    assert [setting.options()["lr"] / LR_FACTOR for setting in plan["3 joint"]] == pytest.approx(
        [1e-5, 5e-5, 1e-4, 5e-4]
    )
    assert {(one.lr, one.tau) for one in plan["3 value"]} == {(1e-4, 1.0)}
    assert [one.options()["beta"] for one in plan["4 KTO"]] == [0.1, 1.0, 5.0]
    assert [one.tau for one in plan["4 DRO-V"]] == [0.1, 1.0, 5.0]
    assert [(one.value, one.network) for one in plan["5"]] == [("token", "separate"), *SHARING]
    for setting in (one for figure in plan.values() for one in figure):
        align_config(feedback="f", model="m", out="o", **setting.options())


def result(setting: Setting, win: float, select: float = 0.0, better: int = 600) -> dict[str, Any]:
    """A row whose first `better` of 1,000 completions are judged 1, the others 0."""
    judged = [float(place % 1000 < better) for place in range(1000)]
    return {
        "setting": vars(setting), "win": win, "select": select, "folds": [win - 1, win, win, win, win + 1],
        "win_same_length": win, "best_step": 10, "reward": 0.1, "judge": 50.0, "kl_policy_ref": 1.0, "distinct_2": 0.9,
        "words": 10.0, "value": 0.5, "texts": [" a b"] * 1000, "judged": judged,
    }  # fmt: skip


def test_side_by_side_counts_folds_and_ties() -> None:
    first, second = result(Setting("dro"), 0, better=600), result(Setting("kto"), 0, better=400)
    found = side_by_side(first, second)
    # 400 ties of both good, 200 wins, 400 ties of both bad.
    assert found["win"] == pytest.approx(60.0)
    assert found["folds"] == pytest.approx([60.0] * FOLDS)
    assert found["win_same_length"] is None


def test_the_interval_is_of_all_folds() -> None:
    """Folds 49, 50, 50, 50, 51: standard deviation sqrt(1/2), half-width 1.96 sqrt(1/10)."""
    mean, low, high = interval([result(Setting("dro"), 50.0)])
    assert (mean, high - low) == (50.0, pytest.approx(2 * 1.96 * 0.1**0.5))


def papers(scale: float = 1.0) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for figure, settings in sweeps().items():
        wins = PAPER.get(figure, (None,) * len(settings))
        found[figure] = [result(one, scale * (win or 70.0)) for one, win in zip(settings, wins, strict=True)]
    return found


def test_claims_hold_on_the_papers_figures_and_fail_on_their_negatives() -> None:
    names = [*UNTUNED, *TUNED]
    good = {name: [result(Setting("dro"), win, better=better)] for name, win, better in
            zip(names, (78.9, 67.5, 79.0, 68.0), (700, 400, 700, 400), strict=True)}  # fmt: skip
    assert all(claim.holds for claim in check_claims(good, good, papers()))
    bad = {name: [result(Setting("dro"), 40.0, better=better)] for name, better in
           zip(names, (400, 700, 400, 700), strict=True)}  # fmt: skip
    upside_down = check_claims(bad, bad, papers(-1.0))
    # Ranges do not know up from down.
    kept = [claim.claim for claim in upside_down if claim.holds]
    assert [text.partition(" ")[0] for text in kept] == ["the", "stable"]


def test_lines_have_the_papers_figures_beside_ours() -> None:
    compared = {name: [result(Setting("dro", seed=seed), win) for seed in (1, 2)] for name, win in
                zip(UNTUNED, (60.0, 55.0), strict=True)}  # fmt: skip
    base = [{key: row[key] for key in row if key != "win"} for row in compared["KTO"]]
    for figure, told in (("1", (78.9, 67.5, 63.4)), ("2", (81.5, 78.2, 57.5))):
        lines = compare_lines({"SFT": base, **compared}, figure)
        assert [line["paper"] for line in lines] == ["", *told]
        assert [line["win"] for line in lines] == [50.0, 60.0, 55.0, 50.0]
        assert {line["figure"] for line in lines} == {figure}
    assert [line["paper"] for line in sweep_lines(papers()) if line["figure"] == "5"] == [76.6, "", 55.5, "", 72.1]


def test_best_is_by_the_prompts_to_choose_by_alone() -> None:
    rows = [result(Setting("kto", tau=tau), win, select) for tau, win, select in ((0.1, 90, 50), (1.0, 60, 70))]
    assert best(rows) == replace(Setting("kto"), tau=1.0)


def test_both_methods_are_tuned_alike_and_the_best_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DRO-V is best at tau 0.1, then at lr 5e-5; KTO at tau 5, and no other rate is better."""
    asked: list[Setting] = []

    def fake(settings: list[Setting], size: Any, folder: Path, workers: int) -> list[dict[str, Any]]:
        asked.extend(settings)
        liked = {("dro", 0.1, 1e-4): 70.0, ("dro", 0.1, 5e-5): 72.0, ("dro", 1.0, 5e-4): 90.0, ("kto", 5.0, 1e-4): 60.0}
        return [result(one, 55.0, liked.get((one.method, one.tau, one.lr), 50.0)) for one in settings]

    monkeypatch.setattr(dro, "run_all", fake)
    found, chosen = dro.sweep(SIZES["full"], tmp_path, 1)
    assert list(chosen) == [*UNTUNED, *TUNED]
    assert chosen["DRO-V"] == Setting("dro") and chosen["KTO"] == chosen["KTO, best of 6"] == Setting("kto", tau=5.0)
    assert chosen["DRO-V, best of 6"] == Setting("dro", tau=0.1, lr=5e-5, value_lr=5e-5)
    for name in ("DRO-V", "KTO"):
        tried = {Setting(**row["setting"]) for row in [*found[f"4 {name}"], *found[f"{name} lr"]]}
        assert len(tried) == 6
    lines = sweep_lines(found)
    assert len(lines) == 4 + 4 + 3 + 3 + 5 + 4 + 4
    compared = {"SFT": [result(Setting("sft"), 50.0)]} | {name: [result(one, 55.0)] for name, one in chosen.items()}
    plot(compare_lines(compared), found, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 1000
    assert {one.method for one in asked} == {"dro", "kto"}


def test_the_larger_model_is_compared_as_the_first_and_nothing_is_chosen_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole of `run`, with runs that are not made."""
    asked: list[tuple[str, int, Setting]] = []

    def fake(settings: list[Setting], size: Any, folder: Path, workers: int) -> list[dict[str, Any]]:
        asked.extend((folder.name, size.layers, setting) for setting in settings)
        return [result(one, 55.0) for one in settings]

    monkeypatch.setattr(dro, "run_all", fake)
    monkeypatch.setattr(dro, "describe", lambda folder, size: {"parameters": float(size.layers)})
    reported: list[Any] = []
    monkeypatch.setattr(dro, "report", lambda out, *told: reported.extend(told) or out)
    run(tmp_path, "full")
    _, larger, _, _, more = reported
    assert list(larger) == ["SFT", *UNTUNED] and more["data"] == {"parameters": 2.0, "parameters_larger": 6.0}
    mine = [(layers, setting) for name, layers, setting in asked if name == "larger"]
    best_tau = next(setting.tau for name, _, setting in asked if name == "parts" and setting.method == "kto")
    plan = [Setting("sft"), Setting("dro"), Setting("kto", tau=best_tau)]
    assert mine == [(6, replace(one, seed=seed)) for seed in (1, 2) for one in plan]


def test_smoke(tmp_path: Path) -> None:
    path = run(tmp_path, "smoke", workers=2)
    found = json.loads(path.read_text())
    assert set(found) >= {"name", "rows", "claims", "command", "commit", "seeds", "machine", "lr_factor", "data"}
    runs = {row["setting"]["method"]: row for row in found["runs"]}
    assert runs["sft"]["kl_policy_ref"] == 0
    assert 0 < runs["dro"]["kl_policy_ref"] < 5 and 0 < runs["kto"]["kl_policy_ref"] < 5
    assert all(len(runs[name]["folds"]) == FOLDS and runs[name]["best_step"] == 2 for name in ("dro", "kto"))
    assert runs["dro"]["value"] != 0 and runs["kto"]["value"] is None
    assert all("texts" not in row for row in found["runs"])
    assert (tmp_path / "dro.png").stat().st_size > 1000
    parts = sorted(file.name for file in (tmp_path / "parts").iterdir())
    again = json.loads(run(tmp_path, "smoke", workers=1).read_text())
    assert again["rows"] == found["rows"]
    assert parts == sorted(file.name for file in (tmp_path / "parts").iterdir())

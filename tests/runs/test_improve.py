"""`improve` from prompts to a folder: every method, resuming, and rewards that go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from valence.cli.main import main
from valence.errors import UserError
from valence.objectives.policy_gradient import REINFORCE
from valence.objectives.ppo import PPO
from valence.policies.loading import load_language_policy
from valence.runs.improve_language import ImproveConfig, improve
from valence.runs.methods import METHODS
from valence.runs.settings import configure, settings_of, to_words
from valence.training.tracking import read_metrics

QUICK: dict[str, Any] = {
    "quiet": True, "max_steps": 4, "batch_size": 4, "eval_every": 0, "eval_samples": 4, "max_new_tokens": 6,
    "tracker": "none", "save_every": 0, "lr": 1e-2,
}  # fmt: skip


def letters(completions: list[str], **_: Any) -> list[float]:
    """More of the alphabet's first half is better: tells random bytes apart."""
    return [sum(letter < "n" for letter in text) / (len(text) + 1) for text in completions]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}", "answer": str(n)}) + "\n" for n in range(20)))
    return path


@pytest.mark.parametrize("method", METHODS["improve"])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_every_method_runs_and_moves_the_model(
    method: str, kind: str, prompts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    result = improve(prompts, model=model, out=tmp_path / "out", reward=letters, method=method, **QUICK)
    assert result.steps == 4 and {"reward", "kl_policy_ref", "kl_ref_policy"} <= result.after.keys()
    assert result.before["kl_policy_ref"] == pytest.approx(0, abs=1e-5) and result.after["kl_policy_ref"] > 0
    before, after = (load_language_policy(str(path)).trainable() for path in (model, result.model))
    assert any(not torch.equal(part, after[name]) for name, part in before.items())
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert any("reward" in row and "shaped_reward" in row and "unjudged" in row for row in rows)
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    words, positional = to_words(ImproveConfig, kept)
    assert kept["method"] == method and kept["reward"] == "letters"
    assert settings_of(configure(ImproveConfig, words, positional)) == kept


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rebel", "pairs": "best-worst", "num_epochs": 2, "minibatch_size": 2},
        {"method": "pmpo", "labels": "best-worst", "preset": "r"}, {"method": "pmpo", "labels": "batch-mean"},
        {"method": "ppo", "minibatch_size": 2, "num_epochs": 2}, {"method": "rloo", "lora_rank": 2},
        {"method": "ppo", "value_network": "head", "whiten": False, "value_lr": 1e-3},
        {"method": "pmpo", "lora_rank": 2}, {"method": "rebel", "temperature": 0.7, "unfinished_reward": -1.0},
        {"method": "grpo", "beta": 0}, {"method": "spo", "num_samples": 2}, {"method": "reinforce", "num_samples": 1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_change_the_way(options: dict[str, Any], prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=letters, **(QUICK | options))
    assert result.steps >= 4 and result.after["kl_policy_ref"] > 0


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pmpo", "rloo")]


@pytest.mark.parametrize("method", ["rebel", *SLOW])
def test_the_reward_rises(method: str, prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    options = QUICK | {"max_steps": 20 if method == "rloo" else 32, "batch_size": 16, "eval_samples": 128, "lr": 2e-2}

    def strong(completions: list[str], **_: Any) -> list[float]:
        return [10 * value for value in letters(completions)]

    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=strong, method=method, **options)
    gain = result.after["reward"] - result.before["reward"]
    assert gain > 2 * (result.before["reward_95_half_width"] + result.after["reward_95_half_width"])


@pytest.mark.parametrize(
    "more",
    [{"method": "rebel", "num_epochs": 2}, {"method": "pmpo", "refresh_every": 3},
     {"method": "ppo", "num_epochs": 2}, {"method": "apa", "lora_rank": 2}],
    ids=str,
)  # fmt: skip
def test_a_run_goes_on_bit_for_bit(more: dict[str, Any], prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    options = QUICK | {"save_every": 4} | more
    longer = options | {"max_steps": 8}
    whole = improve(prompts, model=tiny_llama, out=tmp_path / "whole", reward=letters, **longer)
    improve(prompts, model=tiny_llama, out=tmp_path / "half", reward=letters, **options)
    half = improve(prompts, model=tiny_llama, out=tmp_path / "half", reward=letters, resume=True, **longer)
    file = "adapter_model.safetensors" if "lora_rank" in more else "model.safetensors"
    ours, theirs = (load_file(run.model / file) for run in (half, whole))
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())


def test_the_first_update_gets_what_was_asked_for(
    prompts: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feedback, objective and mask of the first batch, by method."""
    from valence.training.learner import Learner
    from valence.types import Labels, Rewards

    class Enough(Exception):
        pass

    def first(**options: Any) -> tuple[Any, Any, dict[str, Any]]:
        seen: list[Any] = []

        def spy(self: Learner, batch: Any, **more: Any) -> None:
            seen.append((batch, self.objective, more))
            raise Enough

        monkeypatch.setattr(Learner, "update", spy)
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(Enough):
            improve(prompts, model=tiny_llama, out=out, reward=letters, **(QUICK | options))
        return seen[0]

    batch, objective, more = first(method="rebel", pairs="best-worst", eta=0.3, minibatch_size=2)
    assert isinstance(batch.feedback, Rewards) and objective.eta == 0.3 and objective.anchor == "old"
    assert more["num_epochs"] == 4 and more["minibatch_size"] == 2
    # Of four completions two are compared, and no more are measured.
    assert int(batch.present.sum(-1).max()) == 2 and torch.equal(batch.action.mask.any(-1), batch.present)
    batch, objective, more = first(method="pmpo", labels="best-worst", preset="r")
    assert (
        isinstance(batch.feedback, Labels) and objective.alpha == 0 and objective.beta == 2 and more["num_epochs"] == 1
    )
    assert batch.feedback.sign[batch.present].tolist().count(1) == batch.feedback.sign[batch.present].tolist().count(-1)
    batch, objective, _ = first(method="spo", num_samples=2)
    # Two completions: one has won or both are even, whatever the reward's size.
    assert set(batch.feedback.value[batch.present].abs().tolist()) <= {0.0, 0.5}
    batch, *_ = first(method="rloo", unfinished_reward=-9.0, kl_weight=0.0, max_new_tokens=1)
    assert set(batch.feedback.value[batch.present].tolist()) <= {-9.0, 0.0}
    _, objective, _ = first(method="reinforce", baseline="none", num_samples=1)
    assert objective == REINFORCE(baseline="none")
    _, objective, _ = first(method="ppo", discount=0.9, whiten=False, gae_lambda=0.5)
    assert objective == PPO(discount=0.9, whiten=False, gae_lambda=0.5)


def test_the_rows_that_a_reward_fails_on_are_counted(
    prompts: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def moody(completions: list[str], **_: Any) -> list[float | None]:
        calls.append(len(completions))
        return [None if place == 0 and len(calls) > 1 else value for place, value in enumerate(letters(completions))]

    improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=moody, **(QUICK | {"quiet": False}))
    said = capsys.readouterr().out
    assert "the reward gave no number for" in said and "no finite number" in said


def test_a_reward_by_its_file_with_a_column(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def judge(prompts, completions, answer):\n"
        "    assert all(p == 'p' + a for p, a in zip(prompts, answer, strict=True))\n"
        "    return [len(c) for c in completions]\n"
    )
    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=f"{tmp_path}/mine.py:judge", **QUICK)
    assert result.steps >= 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "kto"}, "`method` is 'kto', and must be one of rebel"),
        ({"method": "rloo", "eta": 0.5}, "`eta` belongs to the method rebel or spo"),
        ({"method": "rloo", "num_epochs": 2}, "`num_epochs` belongs to the method rebel or pmpo"),
        ({"num_samples": 1}, "`num_samples` is 1, and must be at least 2: rebel compares"),
        ({"method": "rloo", "num_samples": 1}, "`num_samples` is 1, and must be at least 2: rloo compares"),
        ({"method": "copg", "beta": 0}, "`beta` must be finite and > 0"),
        ({"kl_weight": -1}, "`kl_weight` is -1"), ({"pairs": "some"}, "invalid choice 'some' for argument `pairs`"),
        ({"labels": "halves"}, "`labels` belongs to the method pmpo"),
        ({"num_given": 1}, "`num_given=1` takes completions from each row"),
        ({"reference_cache": "kept"}, "`reference_cache`"), ({"value_lr": 1e-3}, "belongs to the method ppo or apa"),
        ({"reward": "judge:m"}, "must have the form judge:MODEL@URL"),
        ({"reward": "nothing"}, "`reward`: 'nothing' is none of number"), ({"no_such": 1}, "`no_such`"),
        ({"max_length": 2}, "no prompt fits `max_length=2`: raise it"),
        ({"method": "pmpo", "preset": "ar", "alpha": 0.5}, "preset 'ar' sets `alpha` to 0.5: give one of the two"),
        ({"reference_dtype": "bfloat16", "lora_rank": 2}, "`reference_dtype` must be left out with `lora_rank`"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_clear_line(
    options: dict[str, Any], said: str, prompts: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        improve(prompts, model=tiny_llama, out=tmp_path / "out", **({"reward": "length"} | QUICK | options))
    assert said in str(caught.value)


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["improve", "prompts.jsonl", "--model", "small-lm"])
    assert stop.value.code == 2 and "out, reward missing: valence improve PROMPTS" in capsys.readouterr().err


class Mortal:
    """A judge that is gone at its nth call."""

    name, failures, repeated = "mortal", dict[str, int](), 0

    def __init__(self, dies_at: int) -> None:
        self.left = dies_at

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        self.left -= 1
        if self.left == 0:
            raise UserError("the judge gave no answer")
        return letters(completions)


def test_a_judge_that_is_gone_stops_the_run_and_loses_nothing(
    prompts: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from valence.runs import improve_language as runs

    def go(name: str, judge: Mortal, **more: Any) -> Any:
        monkeypatch.setattr(runs, "load_reward", lambda *_, **__: judge)
        return improve(prompts, model=tiny_llama, out=tmp_path / name, reward="mortal", **(options | more))

    options = QUICK | {"save_every": 100, "method": "rloo", "max_steps": 6}
    whole = go("whole", Mortal(-1))
    # The first call is the evaluation's, before anything was learned.
    with pytest.raises(UserError, match=r"gave no answer \(saved: .*step-00000003\)"):
        go("broken", Mortal(5))
    rest = go("broken", Mortal(-1), resume=True)
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (rest, whole))
    assert rest.steps == 6 and all(torch.equal(ours[name], part) for name, part in theirs.items())


def rest(completions: list[str], **_: Any) -> list[float]:
    """The other half of the alphabet: gold that falls as `letters` rises."""
    return [1 - value for value in letters(completions)]


def test_gold_is_measured_kept_and_reported(
    prompts: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_steps": 24, "batch_size": 16, "eval_samples": 64, "eval_every": 8, "quiet": False, "lr": 2e-2}

    def strong(completions: list[str], **_: Any) -> list[float]:
        return [10 * value for value in letters(completions)]

    out = tmp_path / "out"
    result = improve(
        prompts, model=tiny_llama, out=out, reward=strong, gold=rest, method="rloo", kl_weight=0.0, **QUICK | options
    )
    assert result.after["gold"] < result.before["gold"] and result.after["reward"] > result.before["reward"]
    assert result.before["gold_win_rate"] == 0.5 and result.after["gold_win_rate"] < 0.5
    points = json.loads((out / "evaluations.json").read_text())
    assert [point["step"] for point in points] == [0, 8, 16, 24] and len(points[0]["gold"]) == 64
    # Gold was best at the start: that policy is kept.
    best, start = (load_language_policy(str(path)).trainable() for path in (out / "best-by-gold", tiny_llama))
    assert all(torch.equal(part, start[name]) for name, part in best.items())
    said = capsys.readouterr().out
    assert "DIVERGED" in said and "best-by-gold" in said and "DIVERGED" in (out / "report.html").read_text()


def test_without_gold_nothing_is_said_of_it(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=letters, **QUICK)
    assert "gold" not in result.after and not (tmp_path / "out" / "best-by-gold").exists()
    assert "no gold reward was given" in (tmp_path / "out" / "report.html").read_text()


def test_a_pairwise_gold_counts_wins_against_the_start(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    from valence.rewards.judge import SelfPlay

    def longer(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
        return [0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in zip(first, second, strict=True)]

    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=letters, gold=SelfPlay(longer), **QUICK)
    assert result.before["gold"] == 0.5 and 0 <= result.after["gold"] <= 1 and "gold_win_rate" not in result.after


@pytest.mark.slow
def test_the_evaluations_go_on_with_the_run(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    options = QUICK | {"save_every": 4, "eval_every": 4, "num_epochs": 1}
    longer = options | {"max_steps": 12}
    improve(prompts, model=tiny_llama, out=tmp_path / "whole", reward=letters, gold=rest, **longer)
    improve(prompts, model=tiny_llama, out=tmp_path / "half", reward=letters, gold=rest, **(options | {"max_steps": 8}))
    improve(prompts, model=tiny_llama, out=tmp_path / "half", reward=letters, gold=rest, resume=True, **longer)
    whole, half = (json.loads((tmp_path / name / "evaluations.json").read_text()) for name in ("whole", "half"))
    assert [point["step"] for point in whole] == [0, 4, 8, 12] and half == whole


def test_the_evaluations_begin_again_with_other_samples(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    options = QUICK | {"save_every": 4, "eval_every": 4}
    out = tmp_path / "out"
    improve(prompts, model=tiny_llama, out=out, reward=letters, gold=rest, **options)
    more = options | {"max_steps": 8, "eval_samples": 6, "resume": True}
    improve(prompts, model=tiny_llama, out=out, reward=letters, gold=rest, **more)
    points = json.loads((out / "evaluations.json").read_text())
    assert [(point["step"], len(point["gold"])) for point in points] == [(8, 6)]


def test_a_wrong_gold_is_called_gold(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`gold`: 'nobody' is none of number"):
        improve(prompts, model=tiny_llama, out=tmp_path / "out", reward="length", gold="nobody", **QUICK)


def test_no_gold_may_be_said_as_none(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=letters, gold=None, **QUICK)
    assert "gold" not in result.after


def test_held_out_prompts_need_no_completion_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "abc", "rejected": "xyz"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text('{"prompt": "h"}\n{"prompt": "g"}\n')
    result = improve(
        tmp_path / "pairs.jsonl", model=tiny_llama, out=tmp_path / "out", reward=letters, num_given=1,
        eval_feedback=str(tmp_path / "held.jsonl"), **QUICK,
    )  # fmt: skip
    assert result.steps == 4


@pytest.mark.parametrize("stop", [2, 6])
def test_eta_has_a_schedule_over_whole_data_sets_and_goes_on(
    stop: int, prompts: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from valence.training.learner import Learner

    seen: list[tuple[float, int, int]] = []
    update = Learner.update

    def spy(self: Learner, batch: Any, **more: Any) -> dict[str, float]:
        memory = len(self.optimizers["policy"].state)
        seen.append((self.objective.eta, batch.num_contexts, memory))  # pyright: ignore[reportAttributeAccessIssue]
        return update(self, batch, **more)

    monkeypatch.setattr(Learner, "update", spy)
    options = QUICK | {
        "method": "rebel", "full_batch": True, "minibatch_size": 10, "num_epochs": 1, "eta_schedule": (1e6, 1e4, 1e2),
        "pairs": "best-worst", "num_samples": 3, "eval_fraction": 0.0, "save_every": 2, "max_steps": 8,
    }  # fmt: skip
    whole = improve(prompts, model=tiny_llama, out=tmp_path / "whole", reward=letters, **options)
    # 20 prompts at ten a step; Adam's state is reset where eta changes, and stays where it does not.
    assert [(eta, contexts, bool(memory)) for eta, contexts, memory in seen] == [
        (1e6, 20, False), (1e4, 20, False), (1e2, 20, False), (1e2, 20, True),
    ]  # fmt: skip
    improve(prompts, model=tiny_llama, out=tmp_path / "half", reward=letters, **(options | {"max_steps": stop}))
    half = improve(prompts, model=tiny_llama, out=tmp_path / "half", reward=letters, resume=True, **options)
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (half, whole))
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())


def test_steps_that_are_not_those_asked_for_are_said(
    prompts: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A collected batch is learned from as a whole: rebel's takes four steps by default."""
    shared: dict[str, Any] = {"model": tiny_llama, "reward": "length", "batch_size": 4, "max_new_tokens": 4}
    shared |= {"eval_every": 0, "eval_samples": 2, "save_every": 0, "tracker": "none", "max_steps": 2}
    assert improve(prompts, out=tmp_path / "four", **shared).steps == 4
    said = "note: 4 steps and not 2: a collected batch is learned from as a whole, which takes 4 (`num_epochs=4`)"
    assert said in capsys.readouterr().out
    assert improve(prompts, out=tmp_path / "two", num_epochs=1, **shared).steps == 2
    assert "note:" not in capsys.readouterr().out


def test_a_fixed_bar_labels_by_itself(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """Everything below the bar: rejected alone, and the policy still moves."""
    options = QUICK | {"method": "pmpo", "labels": "threshold", "threshold": 5.0, "beta": 2}
    result = improve(prompts, model=tiny_llama, out=tmp_path / "out", reward=letters, **options)
    assert result.after["kl_policy_ref"] > 0
    with pytest.raises(UserError, match="`threshold` is 5, and must be left out unless labels is threshold"):
        improve(prompts, model=tiny_llama, out=tmp_path / "no", reward=letters, **(options | {"labels": "halves"}))


def test_a_folder_whose_run_failed_before_it_learned_is_free(prompts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    def broken(completions: list[str], **_: Any) -> list[float]:
        raise RuntimeError("no")

    out = tmp_path / "out"
    with pytest.raises(UserError, match="judged none"):
        improve(prompts, model=tiny_llama, out=out, reward=broken, **QUICK)
    assert (out / "config.yaml").exists()
    improve(prompts, model=tiny_llama, out=out, reward=letters, method="rloo", **QUICK)
    with pytest.raises(UserError, match="already holds a run"):
        improve(prompts, model=tiny_llama, out=out, reward=letters, **QUICK)

"""`align` from a file to a folder, every method, both architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from valence.errors import UserError
from valence.policies.loading import load_language_policy
from valence.runs.align import align
from valence.training.tracking import read_metrics

QUICK: dict[str, Any] = {
    "quiet": True, "max_steps": 4, "batch_size": 8, "eval_every": 0, "eval_samples": 4, "eval_rows": 16,
    "max_new_tokens": 8, "tracker": "none", "save_every": 0, "lr": 1e-2,
}  # fmt: skip

WORDS = ("good", "fine", "bad", "poor", "so-so", "great")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"p{n % 30}", "completion": f"{WORDS[n % 6]} {n}", "accept": n % 6 in (0, 1, 5)} for n in range(60)
    ]
    return write(tmp_path / "labels.jsonl", rows)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)],
    )


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [{"prompt": f"p{n // 2}", "completion": f"{WORDS[n % 6]} {n}", "reward": float(n % 6)} for n in range(60)]
    return write(tmp_path / "scores.jsonl", rows)


CASES = [
    ("pmpo", "labels", {}), ("pmpo", "labels", {"preset": "r"}), ("kto", "labels", {}), ("supervised", "labels", {}),
    ("dro", "scores", {}), ("dro", "scores", {"value": "prompt"}), ("dro", "scores", {"value": "batch"}),
    ("dro", "scores", {"value": "batch-mean"}), ("dro", "scores", {"value_network": "head"}),
    ("rebel", "scores", {}), ("rebel", "pairs", {}), ("dpo", "pairs", {}), ("ipo", "pairs", {}), ("rpo", "pairs", {}),
    ("pmpo", "pairs", {}), ("dro", "labels", {}), ("pmpo", "scores", {"score_temperature": 1.0}),
]  # fmt: skip


def slow_variant(method: str, options: dict[str, Any]) -> bool:
    """Whether another case trains the same objective with the same kind of rows."""
    return (method == "dro" and options.get("value") in ("batch", "batch-mean")) or "preset" in options


@pytest.mark.parametrize(
    "method, shape, options",
    [pytest.param(*case, marks=pytest.mark.slow if slow_variant(case[0], case[2]) else ()) for case in CASES],
)
def test_every_method_learns_its_training_rows(
    method: str, shape: str, options: dict[str, Any], tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """After 30 steps the implicit reward ranks the rows that were trained on (here also the held-out file)."""
    path = request.getfixturevalue(shape)
    settings = QUICK | {"max_steps": 30, "eval_feedback": (str(path),), "eval_rows": 60, "lr": 3e-3} | options
    result = align(path, model=tiny_llama, out=tmp_path / "out", method=method, **settings)
    assert result.steps == 30
    assert result.before["implicit_reward_accuracy"] == pytest.approx(0.5, abs=0.01)
    assert result.after["implicit_reward_accuracy"] > 0.7
    assert result.after["kl_policy_ref"] > 0


def test_folder_holds_what_is_promised(tiny_llama: Path, labels: Path, tmp_path: Path, curves: None) -> None:
    out = tmp_path / "out"
    result = align(labels, model=tiny_llama, out=out, **QUICK | {"tracker": "tensorboard", "save_every": 2})
    policy = load_language_policy(str(result.model))
    assert not torch.equal(
        policy.model.lm_head.weight, load_language_policy(str(tiny_llama)).model.lm_head.weight
    )  # the weights that were trained, not the ones that came
    assert "| kl_policy_ref |" in (out / "model" / "README.md").read_text()
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    assert set(samples[0]) == {"prompt", "before", "after"}
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 1
    assert "read as accepted" in report and "read as rejected" in report
    assert list((out / "tensorboard").glob("events.*"))


def test_config_reruns_the_run(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    first = align(labels, model=tiny_llama, out=tmp_path / "a", **QUICK)
    fields = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    second = align(**(fields | {"out": str(tmp_path / "b"), "quiet": True}))
    one, other = (load_file(result.model / "model.safetensors") for result in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_give_the_same_weights(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    whole = align(labels, model=tiny_llama, out=tmp_path / "a", **QUICK)
    parts = align(labels, model=tiny_llama, out=tmp_path / "b", micro_batch_size=3, **QUICK)
    one, other = (load_file(result.model / "model.safetensors") for result in (whole, parts))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method, shape", [("pmpo", "labels"), ("dro", "scores"), ("dpo", "pairs"), ("kto", "labels")])
def test_encoder_decoder(
    method: str, shape: str, tiny_t5: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(shape)
    steps, lr = (60, 3e-3) if method == "dro" else (20, 1e-2)
    options = QUICK | {"max_steps": steps, "eval_feedback": (str(path),), "eval_rows": 60, "lr": lr}
    result = align(path, model=tiny_t5, out=tmp_path / "out", method=method, **options)
    assert result.after["implicit_reward_accuracy"] > 0.7


def test_lora_saves_an_adapter_and_its_reference_is_the_base(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    result = align(labels, model=tiny_llama, out=tmp_path / "out", lora_rank=2, **QUICK | {"max_steps": 10})
    assert (result.model / "adapter_model.safetensors").is_file()
    assert not (result.model / "model.safetensors").exists()
    assert result.after["kl_policy_ref"] > 0
    merged = load_language_policy(str(result.model))
    assert not hasattr(merged.model, "peft_config")


def test_kl_budget_stops_and_keeps_the_model_within_it(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    options = QUICK | {"max_steps": 60, "lr": 1e-2, "eval_samples": 32}
    result = align(labels, model=tiny_llama, out=tmp_path / "out", kl_budget=0.5, **options)
    assert result.stopped is not None
    assert "over the budget of 0.5" in result.stopped
    assert result.steps < 60
    assert result.after["kl_policy_ref"] < 0.75  # other samples than the ones the budget was measured on


def test_resume_extends_a_finished_run_like_one_long_run(tiny_llama: Path, scores: Path, tmp_path: Path) -> None:
    """DRO-V: weights, value network, both optimizers, the order of rows and the random state go on."""
    options = QUICK | {"method": "dro", "save_every": 3, "warmup_steps": 2}
    align(scores, model=tiny_llama, out=tmp_path / "a", **options | {"max_steps": 10})
    align(scores, model=tiny_llama, out=tmp_path / "b", **options | {"max_steps": 5})
    align(scores, model=tiny_llama, out=tmp_path / "b", resume=True, **options | {"max_steps": 10})
    one, other = (load_file(tmp_path / side / "model" / "model.safetensors") for side in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    steps = [row["step"] for row in read_metrics(tmp_path / "b" / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 11))


BAD = [
    ({"method": "dpo"}, "labels_apart", "cannot"), ({"method": "rebel"}, "single_scores", "no prompt has two"),
    ({"method": "kto"}, "one_sided", "one side is missing"), ({"preset": "r"}, "one_sided", "there are none"),
    ({"method": "nope"}, "labels", "must be one of"), ({"lr": "fast"}, "labels", "`lr`: .*'fast'"),
    ({"learning_rate": 1}, "labels", "Unrecognized options: `learning_rate`"), ({"max_steps": 2.5}, "labels", "'2.5'"),
    ({"dtype": "float8"}, "labels", "'float8' for argument `dtype`"), ({"max_length": 2}, "labels", "raise it"),
    ({"columns": "prompt"}, "labels", "must look like"), ({"tracker": "paper"}, "labels", "'paper' for argument"),
    ({"model": "/nope"}, "labels", "no model at /nope"), ({}, "flat_scores", "nothing to learn"),
]  # fmt: skip


@pytest.mark.parametrize("options, data, said", BAD)
def test_bad_input_is_one_clear_line(
    options: dict[str, Any], data: str, said: str, tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = {
        "labels_apart": [{"prompt": f"{n}", "completion": "x", "accept": n % 2 == 0} for n in range(30)],
        "single_scores": [{"prompt": f"{n}", "completion": "x", "score": n} for n in range(30)],
        "flat_scores": [{"prompt": f"{n}", "completion": "x", "score": 3} for n in range(30)],
        "one_sided": [{"prompt": f"{n}", "completion": "x", "accept": True} for n in range(30)],
    }
    path = write(tmp_path / "data.jsonl", made[data]) if data in made else request.getfixturevalue(data)
    arguments = {"model": tiny_llama, "out": tmp_path / "out"} | QUICK | options
    with pytest.raises(UserError, match=said) as caught:
        align(path, **arguments)
    assert "\n" not in str(caught.value)


def test_bc_form_takes_unlabelled_rows_in_place_of_the_kl(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are none: use kl"):
        align(labels, model=tiny_llama, out=tmp_path / "a", regularizer="bc", **QUICK)
    rows = [{"prompt": f"p{n}", "completion": f"so-so {n}", "label": 0 if n % 2 else None} for n in range(40)]
    path = write(tmp_path / "unlabelled.jsonl", rows)
    options = QUICK | {"max_steps": 20, "beta": 2, "lr": 3e-3}
    result = align([labels, path], model=tiny_llama, out=tmp_path / "b", regularizer="bc", **options)
    assert "regularizer=bc" in (tmp_path / "b" / "report.html").read_text()
    assert result.after["kl_policy_ref"] > 0


def test_resume_refuses_other_feedback_and_other_settings(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    options = QUICK | {"save_every": 2, "method": "pmpo"}
    align(labels, model=tiny_llama, out=tmp_path / "out", **options)
    kept = (tmp_path / "out" / "config.yaml").read_text()
    with pytest.raises(UserError, match="lr changed"):
        align(labels, model=tiny_llama, out=tmp_path / "out", resume=True, **options | {"lr": 1e-3})
    flipped = [json.loads(line) for line in labels.read_text().splitlines()]
    write(labels, [row | {"accept": not row["accept"]} for row in flipped])
    with pytest.raises(UserError, match="needs the rows of feedback that the run began with, and they have changed"):
        align(labels, model=tiny_llama, out=tmp_path / "out", resume=True, **options)
    assert (tmp_path / "out" / "config.yaml").read_text() == kept


def test_every_problem_row_is_written_down(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    """Rows that cannot be read, rows of the held-out file, and rows cut to fit."""
    with labels.open("a") as file:
        file.write("nonsense\n" + json.dumps({"prompt": "p", "completion": "long " * 60, "accept": True}) + "\n")
    other = write(tmp_path / "other.jsonl", [{"prompt": "p", "completion": "x", "accept": True}, {"completion": ""}])
    options = QUICK | {"max_length": 100, "eval_feedback": (str(other),)}
    align(labels, model=tiny_llama, out=tmp_path / "out", **options)
    rows = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["line"]) for row in rows] == [
        ("labels.jsonl", 61), ("other.jsonl", 2), ("labels.jsonl", 62),
    ]  # fmt: skip
    good = write(tmp_path / "good.jsonl", [json.loads(line) for line in labels.read_text().splitlines()[61:]])
    with pytest.raises(UserError, match="`strict` makes them errors"):
        align(good, model=tiny_llama, out=tmp_path / "b", method="pmpo", strict=True, **QUICK | {"max_length": 100})


def test_plain_demonstrations_can_be_learned(tiny_llama: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "sft.jsonl", [{"prompt": f"p{n}", "completion": f"so {n}"} for n in range(40)])
    options = QUICK | {"max_steps": 30, "lr": 1e-2}
    result = align(path, model=tiny_llama, out=tmp_path / "out", method="supervised", **options)
    losses = [row["loss"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert result.after["kl_policy_ref"] > 1


def test_budget_holds_across_a_resume(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    options = QUICK | {"max_steps": 40, "eval_samples": 32, "save_every": 5}
    first = align(labels, model=tiny_llama, out=tmp_path / "out", kl_budget=0.5, **options)
    again = align(labels, model=tiny_llama, out=tmp_path / "out", kl_budget=0.5, resume=True, **options)
    assert first.stopped is not None
    assert again.stopped is not None
    assert again.after["kl_policy_ref"] < 0.75


def test_a_folder_with_a_run_is_not_overwritten(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    align(labels, model=tiny_llama, out=tmp_path / "out", **QUICK)
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="already holds a run"):
        align(labels, model=tiny_llama, out=tmp_path / "out", **QUICK)
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    "method, shape",
    [
        ("dpo", "pairs"), ("pmpo", "labels"), pytest.param("kto", "labels", marks=pytest.mark.slow),
        pytest.param("dro", "scores", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_reference_cache_changes_no_figure_and_is_used(
    method: str, shape: str, tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from valence.runs import align as runs

    made, cache_reference = [], runs.cache_reference
    monkeypatch.setattr(
        runs, "cache_reference", lambda *given: (made.append(cache_reference(*given)), made[-1])[1]
    )  # fmt: skip
    data, weights = request.getfixturevalue(shape), []
    for name, cache in (("plain", ""), ("first", "cache"), ("second", "cache")):
        options = QUICK | {"reference_cache": str(tmp_path / cache) if cache else ""}
        result = align(data, model=tiny_llama, out=tmp_path / name, method=method, **options)
        weights.append(load_file(result.model / "model.safetensors"))
    first, second = made
    assert first.misses > 0 and second.misses == 0 and second.hits == first.misses + first.hits
    for other in weights[1:]:
        for name, part in weights[0].items():
            torch.testing.assert_close(other[name], part, rtol=1e-3, atol=1e-4)


def test_the_two_heads_give_the_same_run(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    runs = {
        head: align(labels, model=tiny_llama, out=tmp_path / head, method="pmpo", head=head, **QUICK)
        for head in ("fused", "plain")
    }
    ours, theirs = (load_file(run.model / "model.safetensors") for run in runs.values())
    for name, part in theirs.items():
        torch.testing.assert_close(ours[name], part, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [9, pytest.param(4, marks=pytest.mark.slow)])
def test_a_profile_is_a_trace_and_a_table(steps: int, tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    align(labels, model=tiny_llama, out=tmp_path / "out", **(QUICK | {"profile": True, "max_steps": steps}))
    events = json.loads((tmp_path / "out" / "profile.json").read_text())["traceEvents"]
    assert sum("ProfilerStep" in str(event.get("name")) for event in events) >= min(steps - 2, 5)
    table = (tmp_path / "out" / "profile.txt").read_text()
    assert "aten::mm" in table or "aten::addmm" in table


def test_a_reference_in_half_the_memory_is_near(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    runs = [
        align(labels, model=tiny_llama, out=tmp_path / name, method="pmpo", **QUICK, **options)
        for name, options in {"own": {}, "half": {"reference_dtype": "bfloat16", "reference_device": "cpu"}}.items()
    ]
    kl = [run.after["kl_ref_policy"] for run in runs]
    assert kl[0] > 0.01 and abs(kl[1] - kl[0]) < 0.3 * kl[0] + 0.02
    for options in ({"reference_dtype": "float8"}, {"reference_dtype": "bfloat16", "lora_rank": 2}):
        with pytest.raises(UserError, match="`reference_dtype`"):
            align(labels, model=tiny_llama, out=tmp_path / "bad", **QUICK, **options)
    with pytest.raises(UserError, match="'cuda:99', which this machine does not have"):
        align(labels, model=tiny_llama, out=tmp_path / "bad", **QUICK, reference_device="cuda:99")


@pytest.mark.parametrize(
    ("shape", "options", "described"),
    [
        ("pairs", {"method": "dpo", "label_smoothing": 0.1}, "DPO(beta=0.1, anchor=reference, label_smoothing=0.1)"),
        ("labels", {"method": "kto", "desirable_weight": 2, "baseline": "none"}, "desirable_weight=2, undesirable_w"),
        ("labels", {"beta": 3}, "PMPO(alpha=0.5, beta=3, accepted_fraction=0.5, rejected_fraction=0.5, regularizer=k"),
        ("labels", {"preset": "a"}, "PMPO(alpha=1, beta=0, accepted_fraction=0.5, rejected_fraction=0.5"),
    ],
)
def test_a_run_says_its_method_its_objective_and_what_it_wrote(
    shape: str, options: dict[str, Any], described: str, tiny_llama: Path, tmp_path: Path,
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, path = tmp_path / "out", request.getfixturevalue(shape)
    options = QUICK | {"max_steps": 1, "quiet": False, "eval_fraction": 0.0, "resume": True} | options
    result = align(path, model=tiny_llama, out=out, **options)
    output = capsys.readouterr().out
    assert described in output and described in (out / "report.html").read_text()
    assert f"method: {result.method} ({'asked for' if 'method' in options else ''}" in output
    assert f"no checkpoint in {out}: starting from the beginning" in output
    assert f"written: {out}/model, report.html, metrics.jsonl, config.yaml and samples" in output
    rows = "40 rows, 40 prompts, shape pairs" if shape == "pairs" else "60 rows, 30 prompts, shape labels, 30 accepted"
    assert f"feedback: {rows}" in output
    assert result.details["seconds"] > 0 and result.stopped is None and result.model == out / "model"
    assert yaml.safe_load((out / "config.yaml").read_text())["method"] == result.method


def test_a_cache_for_a_method_that_uses_no_reference_is_refused(tiny_llama: Path, labels: Path, tmp_path: Path) -> None:
    options = QUICK | {"method": "supervised", "reference_cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="`reference_cache` must be left out: supervised does not use the reference"):
        align(labels, model=tiny_llama, out=tmp_path / "out", **options)

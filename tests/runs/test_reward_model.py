"""`reward-model` from a file to a folder that `improve` and `compare` take; what it counts and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valence.cli.main import main
from valence.errors import UserError
from valence.rewards.preference_model import PreferenceModel
from valence.runs.compare import CompareConfig, run_comparison
from valence.runs.improve_language import improve
from valence.runs.reward_model import reward_model
from valence.runs.settings import configure, to_words


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"prompt": f"p{n}", "chosen": f"aaa{n}", "rejected": f"zzz{n}"} for n in range(80)]
    return write(tmp_path / "pairs.jsonl", rows)


def train(feedback: str, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    return reward_model(feedback, model=model, out=out, **({"max_steps": 1, "quiet": True} | options))


def test_rows_without_a_comparison_are_counted(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "p", "chosen": f"a{n}", "rejected": "b"} for n in range(4)]
    rows += [{"prompt": "tie", "chosen": "a", "rejected": "b", "chosen_score": 3, "rejected_score": 3}]
    rows += [{"prompt": "alone", "completion": "a", "reward": 0.5}, {"prompt": "s", "completion": "a", "label": True}]
    feedback = write(tmp_path / "f.jsonl", rows)
    figures = train(feedback, tiny_llama, tmp_path / "rm", eval_fraction=0.0, kind="pairs", quiet=False)
    assert figures["rows"] == 4
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("2 rows") and "equal scores" in line for line in lines)
    assert any(line.startswith("1 labelled rows") for line in lines)


def test_wrong_input_is_one_line(
    pairs: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "p"}, {"prompt": "q"}])
    with pytest.raises(UserError, match="too few to learn from"):
        train(prompts, tiny_llama, tmp_path / "prompts")
    with pytest.raises(UserError, match="no reward model can be made from"):
        train(pairs, tmp_path / "nothing", tmp_path / "nothing-rm")
    train(pairs, tiny_llama, tmp_path / "rm")
    with pytest.raises(UserError, match="already holds"):
        train(pairs, tiny_llama, tmp_path / "rm")
    with pytest.raises(SystemExit):
        main(["reward-model", pairs, "--model", "small-lm"])
    assert "out missing: valence reward-model PAIRS" in capsys.readouterr().err


def test_settings_that_make_no_sense(pairs: str, tiny_llama: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"kind": "preference", "embedding": 3}, "embedding.* is 3, and must be even"),
        ({"kind": "pairs", "embedding": 4}, "embedding.* is 4, and must be left out"),
        ({"kind": "cycles"}, "auto.*pairs.*scores.*preference"),
    ):
        with pytest.raises(UserError, match=message):
            train(pairs, tiny_llama, tmp_path / "no", **options)


def test_the_command_makes_a_folder_with_its_figures(
    pairs: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--kind", "preference", "--embedding", "6", "--max-steps", "1", "--device", "cpu"]
    main(["reward-model", pairs, "--model", str(tiny_llama), "--out", str(tmp_path / "pm"), *options])
    printed = capsys.readouterr().out
    assert "preference model: 72 comparisons, 8 held out" in printed and f"{tmp_path / 'pm'} --method spo" in printed
    assert json.loads((tmp_path / "pm" / "reward_model.json").read_text())["kind"] == "preference"
    assert len(json.loads((tmp_path / "pm" / "config.json").read_text())["id2label"]) == 6


def test_improve_and_compare_run_with_a_preference_model(
    pairs: str, tiny_llama: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pm"
    train(pairs, tiny_llama, folder, kind="preference", embedding=2, max_steps=10)
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"{n}: "} for n in range(8)])
    done = improve(
        prompts, model=tiny_llama, out=tmp_path / "run", reward=str(folder), method="spo", max_steps=4,
        batch_size=4, max_new_tokens=6, eval_every=0, eval_samples=4, save_every=0, tracker="none", quiet=True, lr=1e-2,
    )  # fmt: skip
    assert done.steps == 4 and done.after["kl_policy_ref"] > 0
    options = {"prompts": prompts, "judge": str(folder), "out": str(tmp_path / "cmp"), "max_new_tokens": 6}
    options["models"] = [str(tiny_llama), str(tiny_t5)]
    found = run_comparison(configure(CompareConfig, *to_words(CompareConfig, options)))
    rows = [json.loads(line) for line in (tmp_path / "cmp" / "samples.jsonl").read_text().splitlines()]
    expected = PreferenceModel(str(folder))(*([row[name] for row in rows] for name in ("prompt", "first", "second")))
    assert found.judged == 8 and [row["verdict"] for row in rows] == pytest.approx(expected, abs=1e-5)

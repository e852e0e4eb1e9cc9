"""`valence control`: one clear line for bad input, what a run prints, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valence.cli.main import main
from valence.policies.runner import PolicyRunner

POINT = "worlds:Point-v0"
SHORT = ["--steps", "60", "--warmup-steps", "20", "--hidden", "8", "--batch-size", "8", "--tracker", "none"]

BAD = [
    ([], "environment missing: valence control ENVIRONMENT"),
    (["Nowhere-v0"], "gymnasium cannot make 'Nowhere-v0'"),
    (["worlds:Buttons-v0"], "needs a bounded Box of numbers"),
    ([POINT, "--eta=2"], "--eta belongs to the method rebel"),
    ([POINT, "--method", "dpo", "--coupled"], "--coupled belongs to the method pmpo"),
    ([POINT, "--policy", "categorical", "--coupled"], "--coupled is for Gaussian policies"),
    ([POINT, "--bins", "5"], "--bins is 5, and must be left out: --policy gaussian does not use it"),
    (
        [POINT, "--policy", "categorical", "--init-scale", "1"],
        "--init-scale is 1.0, and must be left out",
    ),
    (["worlds:Broken-v0"], "RuntimeError: no licence"),
    ([POINT, "--method", "foo"], "--method is 'foo', and must be one of pmpo, mpo, dpo, rebel"),
    ([POINT, "--policy", "foo"], "'foo' for argument --policy"),
    ([POINT, "--beta", "abc"], "--beta: "),
    ([POINT, "--beta", "-1"], "--beta must be finite and >= 0, got -1.0"),
    ([POINT, "--method", "dpo", "--beta", "0"], "--beta must be finite and > 0, got 0.0"),
    ([POINT, "--method", "mpo", "--beta=1"], "--beta belongs to the method pmpo or dpo"),
    ([POINT, "--method", "rebel", "--preset", "r"], "--preset is 'r', and must be left out: rebel has none"),
    ([POINT, "--preset", "r", "--alpha", "0.5"], "preset 'r' sets --alpha to 0: give one of the two"),
    ([POINT, "--alpha", "2"], "--alpha must be"),
    ([POINT, "--covariance-beta", "nan"], "--covariance-beta must be"),
    ([POINT, "--covariance-beta", "1", "--policy", "categorical"], "--covariance-beta is for Gaussian policies"),
    ([POINT, "--covariance-beta", "1", "--coupled"], "--covariance-beta must be left out: --coupled has one KL weight"),
    ([POINT, "--steps", "500"], "--steps is 500, and must be more than --warmup-steps, 1000"),
    ([POINT, "--steps", "many"], "--steps"),
    ([POINT, "--init-scale", "1e-4"], "--init-scale is 0.0001, and must be above 0.001"),
    ([POINT, "--hidden", "0"], "--hidden is (0,)"),
    ([POINT, "--policy", "categorical", "--bins", "1"], "--bins is 1, and must be at least 2"),
    ([POINT, "--discount", "1.5"], "--discount is 1.5, and must be at most 1"),
    ([POINT, "--lr", "inf"], "--lr is inf, and must be finite"),
    ([POINT, "--critic-lr", "inf"], "--critic-lr"),
    ([POINT, "--batch-size", "0"], "--batch-size"),
    ([POINT, "--action-repeat", "0"], "--action-repeat"),
    ([POINT, "--num-actions", "1"], "--num-actions"),
    ([POINT, "--warmup-steps", "0"], "--warmup-steps"),
    ([POINT, "--target-every", "-1"], "--target-every"),
    ([POINT, "--steps-per-update", "0"], "--steps-per-update"),
    ([POINT, "--steps-per-update", "nan"], "--steps-per-update"),
    ([POINT, "--num-environments", "0"], "--num-environments is 0, and must be at least 1"),
    ([POINT, "--tracker", "paper"], "'paper' for argument --tracker"),
    ([POINT, "--out", "file"], "--out file cannot be written to"),
    ([POINT, "--colour", "red"], "--colour"),
    ([*SHORT, "worlds:Raises-v0"], "RuntimeError: the motor is off"),
    ([*SHORT, "worlds:NanReward-v0"], "gave a reward of nan"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize(("words", "said"), BAD)
def test_bad_input_exits_2_with_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["control", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("valence: ")


def test_unknown_tasks_of_the_control_suite_exit_2_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    pytest.importorskip("dm_control")
    with pytest.raises(SystemExit) as stop:
        main(["control", "dm_control/cartpole-fly-v0"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "its tasks are balance, " in error and error.count("\n") == 1


def test_a_run_says_its_return_and_how_to_act(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["control", POINT, *SHORT, "--method", "mpo", "--eval-episodes", "3"])
    said = capsys.readouterr()
    result = json.loads((folder / "runs" / "worlds-Point-v0" / "results.json").read_text())
    returns = result["returns"]
    mean, low, high = sum(returns) / 3, min(returns), max(returns)
    assert f"return {mean:.1f} (mean of 3 episodes, {low:.1f} to {high:.1f})" in said.out
    assert "valence.PolicyRunner.load('runs/worlds-Point-v0').act(observation) acts" in said.out
    assert PolicyRunner.load("runs/worlds-Point-v0").act([0.5]).shape == (1,)
    lines = said.err.splitlines()
    assert lines[-1].startswith("  update 10/10") and "Q " in lines[-1] and "steps/s" in lines[-1]


def test_a_run_goes_on_and_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["control", POINT, *SHORT, "--out", "o"]
    main(words)
    first = json.loads((folder / "o" / "results.json").read_text())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(words)
    assert "o already holds a run: continue it with --resume, or give another --out" in capsys.readouterr().err
    longer = [word if word != "60" else "100" for word in words]
    main([*longer, "--resume"])
    second = json.loads((folder / "o" / "results.json").read_text())
    assert second["curve"][0] == first["curve"][0] and second["curve"][-1][0] == 96
    with pytest.raises(SystemExit):
        main([*longer, "--resume", "--lr", "0.5"])
    assert "lr changed" in capsys.readouterr().err

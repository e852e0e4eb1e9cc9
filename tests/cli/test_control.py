"""`valence control`: one clear line for bad input, what a run says, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valence.cli.main import main
from valence.policies.runner import PolicyRunner

POINT = "worlds:Point-v0"
SHORT = ["--steps", "60", "--warmup-steps", "20", "--hidden", "8", "--batch-size", "8", "--tracker", "none"]

BAD = [
    ([], "Missing"),
    (["Nowhere-v0"], "gymnasium cannot make 'Nowhere-v0'"),
    (["worlds:Buttons-v0"], "needs a bounded Box of numbers"),
    ([POINT, "--eta", "2"], "--eta is 2.0, and must be left out: --method pmpo does not read it"),
    ([POINT, "--method", "dpo", "--coupled"], "--coupled is True, and must be left out: --method dpo"),
    ([POINT, "--policy", "categorical", "--coupled"], "--coupled is for Gaussian policies"),
    ([POINT, "--bins", "5"], "--bins is 5, and must be left out: --policy gaussian does not read it"),
    (["worlds:Broken-v0"], "RuntimeError: no licence"),
    ([POINT, "--method", "foo"], "'foo' for argument '--method'"),
    ([POINT, "--policy", "foo"], "'foo' for argument '--policy'"),
    ([POINT, "--beta", "abc"], "--beta is 'abc', and must be a finite number >= 0 or auto"),
    ([POINT, "--beta", "-1"], "--beta is '-1'"),
    ([POINT, "--method", "dpo", "--beta", "0"], "--beta is '0', and must be above 0 for dpo"),
    ([POINT, "--method", "mpo", "--beta", "1"], "--beta is '1', and must be left out: --method mpo does not read it"),
    ([POINT, "--method", "rebel", "--preset", "r"], "--preset is 'r', and must be left out: --method rebel does not"),
    ([POINT, "--preset", "r", "--alpha", "0.5"], "--alpha is 0.5, and must be left out: --preset sets it"),
    ([POINT, "--alpha", "2"], "--alpha is 2.0, and must be between 0 and 1"),
    ([POINT, "--covariance-beta", "nan"], "--covariance-beta is nan"),
    ([POINT, "--covariance-beta", "1", "--policy", "categorical"], "--covariance-beta is for Gaussian policies"),
    ([POINT, "--steps", "500"], "--steps is 500, and must be more than --warmup-steps, 1000"),
    ([POINT, "--steps", "many"], "--steps"),
    ([POINT, "--init-scale", "1e-4"], "--init-scale is 0.0001, and must be above 0.001"),
    ([POINT, "--hidden", "0"], "--hidden is (0,)"),
    ([POINT, "--policy", "categorical", "--bins", "1"], "--bins is 1"),
    ([POINT, "--discount", "1.5"], "--discount is 1.5"),
    ([POINT, "--steps-per-update", "0"], "--steps-per-update is 0"),
    ([POINT, "--num-environments", "0"], "--num-environments is 0"),
    ([POINT, "--tracker", "paper"], "--tracker is 'paper'"),
    ([POINT, "--resume", "--out", "none"], "--resume finds no run in none"),
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
    assert "o holds a run already: give --resume to go on with it, or another --out" in capsys.readouterr().err
    longer = [word if word != "60" else "100" for word in words]
    main([*longer, "--resume"])
    second = json.loads((folder / "o" / "results.json").read_text())
    assert second["curve"][0] == first["curve"][0] and second["curve"][-1][0] == 96
    with pytest.raises(SystemExit):
        main([*longer, "--resume", "--lr", "0.5"])
    assert "lr changed" in capsys.readouterr().err

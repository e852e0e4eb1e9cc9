"""`python -m experiments`: its names, its messages, and that one experiment of each kind runs from the command line."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main, names

NAMES = [
    "bandit", "best-worst", "control", "dro", "general-preference", "image", "offline-control", "pmpo-language",
    "summarize", "thumbs",
]  # fmt: skip


def test_an_experiment_is_a_folder_with_run_py() -> None:
    assert names() == NAMES
    for name in NAMES:
        module = import_module(f"experiments.{name.replace('-', '_')}.run")
        assert list(module.SIZES) == ["smoke", "quick", "full"] and module.run.__doc__


@pytest.mark.parametrize(
    "words, message",
    [
        (["nope"], "there is no experiment 'nope'; the experiments are bandit, best-worst, control"),
        (["bandit", "--workers", "-1"], "--workers is -1: give 0 for one process per core, or a number of processes"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    written = capsys.readouterr().err
    assert written.startswith(f"experiments: {message}") and written.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(experiment: Any) -> None:
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")

    monkeypatch.setattr("experiments.bandit.run.run", fail)
    with pytest.raises(SystemExit):
        main(["bandit", "--smoke"])
    assert "the package diffusers is not installed: pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_in_the_results_makes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["bandit", "--smoke", "--out", str(tmp_path / "here")])
    first = json.loads((tmp_path / "here" / "results.json").read_text())
    assert first["command"] == "python -m experiments bandit --smoke --out here"
    assert str(tmp_path) not in (tmp_path / "here" / "README.md").read_text()
    assert "written: " in capsys.readouterr().out
    main(["bandit", *first["command"].split()[4:]])
    assert json.loads((tmp_path / "here" / "results.json").read_text())["rows"] == first["rows"]

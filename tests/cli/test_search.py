"""`valence search`: a run end to end, resuming, and one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from valence.cli.main import main

OWN = """
import numpy as np
def bowl(x): return ((x - 1) ** 2).sum()
def raises(x): raise RuntimeError("no\\nway")
def nan(x): return float("nan")
def minus(x): return -np.inf
def word(x): return "a"
def pair(x): return [1.0, 2.0]
def array(x): return np.array([(x @ x)])
def changes(x):
    x += 100
    return (x - 100) @ (x - 100)
number = 3
def fragile(x):
    from pathlib import Path
    count = int(Path("count").read_text()) + 1
    Path("count").write_text(str(count))
    if count == 100:
        raise RuntimeError("power cut")
    return x @ x
"""

BAD = [
    (["nope", "--dim", "2"], "there is no function 'nope'"),
    (["sphere"], "dim missing: valence search FUNCTION --dim D"),
    (["sphere", "--dim", "0"], "--dim is 0"),
    (["sphere", "--dim", "x"], "--dim"),
    (["rosenbrock", "--dim", "1"], "rosenbrock needs --dim 2"),
    (["sphere", "--dim", "2", "--low", "3", "--high", "1"], "--low must be below --high"),
    (["sphere", "--dim", "2", "--low", "nan"], "--low is nan, and must be finite"),
    (["sphere", "--dim", "2", "--budget", "0"], "--budget is 0"),
    (["sphere", "--dim", "2", "--sigma", "-1"], "--sigma must be finite and > 0, got -1.0"),
    (["sphere", "--dim", "2", "--alpha", "2"], "--alpha must be"),
    (["sphere", "--dim", "2", "--alpha", "0", "--beta", "0.5"], "unbounded"),
    (["sphere", "--dim", "2", "--preset", "r", "--beta", "0.5"], "unbounded"),
    (["sphere", "--dim", "2", "--preset", "r", "--alpha", "0.5"], "preset 'r' sets --alpha to 0"),
    (["sphere", "--dim", "2", "--preset", "x"], "--preset is 'x', and must be one of ar, a, r"),
    (["sphere", "--dim", "2", "--method", "dpo"], "--method is 'dpo', and must be one of pmpo"),
    (["sphere", "--dim", "2", "--population", "1"], "--population is 1, and must be"),
    (["sphere", "--dim", "2", "--resume"], "--resume needs --out"),
    (["sphere", "--dim", "2", "--resume", "--out", "none"], "no saved search in none"),
    (["none.py:f", "--dim", "2"], "none.py does not exist: give file.py:function"),
    (
        ["no_such_module:f", "--dim", "2"],
        "no_such_module:f cannot be loaded: ModuleNotFoundError",
    ),
    (["own.py:f", "--dim", "2"], "own.py:f cannot be loaded: AttributeError: module 'own' has no attribute 'f'"),
    (["own.py:number", "--dim", "2"], "own.py:number is a int, and must be a function"),
    (["broken.py:f", "--dim", "2"], "broken.py:f cannot be loaded: SyntaxError"),
    (["own.py:raises", "--dim", "2"], "RuntimeError: no way"),
    (["own.py:nan", "--dim", "2"], "returned nan"),
    (["own.py:minus", "--dim", "2"], "returned -inf"),
    (["own.py:word", "--dim", "2"], "'a', not a number"),
    (["own.py:pair", "--dim", "2"], "not a number"),
    (["sphere", "--dim", "2", "--out", "own.py"], "--out own.py cannot be written to"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def f(x:\n")
    return tmp_path


@pytest.mark.parametrize("words, said", BAD)
def test_bad_input_exits_2_with_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["search", *words, "--quiet"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1 and not Path("none").exists()


def test_a_run_reaches_its_target_and_writes_what_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", "own.py:bowl", "--dim", "2", "--target", "1e-6", "--out", "o", "--low", "-3", "--high", "4"])
    said = capsys.readouterr()
    assert "target reached" in said.out and "best " in said.err
    result = json.loads((folder / "o" / "results.json").read_text())
    assert result["result"]["value"] <= 1e-6
    assert result["result"]["x"] == pytest.approx([1, 1], abs=2e-3)
    assert (result["low"], result["high"], result["stopped"]) == (-3, 4, "target reached")
    assert [point[1] for point in result["curve"]] == sorted((point[1] for point in result["curve"]), reverse=True)
    written = {path.name for path in (folder / "o").iterdir()}
    assert written == {"config.yaml", "results.json", "convergence.png", "search.json"}
    settings = yaml.safe_load((folder / "o" / "config.yaml").read_text())
    assert settings.items() <= result.items() and (settings["dim"], settings["alpha"]) == (2, "auto")
    assert (folder / "o" / "convergence.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("first", ["90", "100"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(first: str, folder: Path) -> None:
    words = ["search", "schwefel", "--dim", "2", "--seed", "3", "--quiet"]
    main([*words, "--budget", first, "--out", "a"])
    main([*words, "--budget", "400", "--out", "a", "--resume"])
    main([*words, "--budget", "400", "--out", "b"])
    ours, theirs = (json.loads((folder / name / "search.json").read_text()) for name in "ab")
    for name in ("policy", "random", "best", "state"):
        ours[name].pop("extra", None) if name == "state" else None
        theirs[name].pop("extra", None) if name == "state" else None
        assert ours[name] == theirs[name]
    assert ours["state"]["num_judged"] == 400


def test_a_run_that_broke_goes_on_from_its_last_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not saved on the way: what was judged before it broke is saved when it breaks.
    monkeypatch.setattr("valence.runs.search.SAVE_EVERY", 1e9)
    words = ["search", "own.py:fragile", "--dim", "2", "--budget", "180", "--quiet", "--out"]
    (folder / "count").write_text("0")
    with pytest.raises(SystemExit):
        main([*words, "a"])
    assert 90 <= json.loads((folder / "a" / "search.json").read_text())["state"]["num_judged"] < 100
    main([*words, "a", "--resume"])
    main([*words, "b"])
    assert (folder / "a" / "search.json").read_text() == (folder / "b" / "search.json").read_text()


def test_resuming_another_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", "sphere", "--dim", "2", "--budget", "30", "--out", "a", "--quiet"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["search", "sphere", "--dim", "2", "--budget", "60", "--out", "a", "--resume", "--seed", "4", "--quiet"])
    assert "seed changed (seed was 0, is 4)" in capsys.readouterr().err
    (folder / "a" / "search.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["search", "sphere", "--dim", "2", "--budget", "60", "--out", "a", "--resume", "--quiet"])
    assert "cannot be read" in capsys.readouterr().err


def test_resuming_what_is_finished_changes_nothing(folder: Path) -> None:
    words = ["search", "sphere", "--dim", "2", "--budget", "60", "--out", "a", "--quiet"]
    main(words)
    before = (folder / "a" / "results.json").read_text()
    main([*words, "--resume"])
    assert (folder / "a" / "results.json").read_text() == before


def test_a_search_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "sphere", "--dim", "2", "--budget", "30", "--out", "a", "--quiet"]
    main(words)
    before = (folder / "a" / "search.json").read_text()
    with pytest.raises(SystemExit):
        main([*words, "--seed", "1"])
    assert "a already holds a run: continue it with --resume, or give another --out" in capsys.readouterr().err
    assert (folder / "a" / "search.json").read_text() == before


def test_a_weight_beside_a_preset_wins(folder: Path) -> None:
    words = ["search", "sphere", "--dim", "2", "--budget", "30", "--quiet"]
    main([*words, "--preset", "r", "--beta", "3", "--out", "a"])
    main([*words, "--alpha", "0", "--beta", "3", "--out", "b"])
    ours, theirs = (json.loads((folder / name / "results.json").read_text()) for name in "ab")
    assert (ours["alpha"], ours["beta"]) == (0.0, 3.0)
    assert {name for name in ours if ours[name] != theirs[name]} == {"out"}


@pytest.mark.parametrize("options", [["--preset", "ar"], ["--preset", "a"], ["--preset", "r"], ["--kl", "exact"]])
def test_presets_and_forms_of_the_kl_work(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", "double-sum", "--dim", "3", "--target", "1e-4", "--quiet", *options])
    assert "target reached" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["array", "changes"])
def test_functions_may_return_an_array_of_one_and_change_what_they_are_given(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["search", f"own.py:{name}", "--dim", "2", "--target", "1e-4", "--quiet"])
    assert "target reached" in capsys.readouterr().out


def test_a_module_beside_the_user_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "hillside_of_tests.py").write_text("def f(x): return x @ x\n")
    main(["search", "hillside_of_tests:f", "--dim", "2", "--target", "1e-4", "--quiet"])
    assert "target reached" in capsys.readouterr().out

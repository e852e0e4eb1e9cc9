"""The help of every command: its options and those of one method, on at most two screens."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import pytest

from valence.cli.main import COMMANDS, main
from valence.runs.methods import METHODS

LINES, COLUMNS = 110, 110
CASES = [(name, None) for name in COMMANDS] + [(place, name) for place in METHODS for name in METHODS[place]]


@pytest.fixture(autouse=True)
def a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    output = capsys.readouterr()
    assert not output.err
    return output.out


def config_of(command: str) -> Any:
    return getattr(import_module(COMMANDS[command].module), COMMANDS[command].config)


def shared(kind: Any) -> set[str]:
    """The flat names of a command's options, those of its method left out."""
    found: set[str] = set()
    for name, value in vars(kind()).items():
        found |= {item.name for item in fields(value)} if is_dataclass(value) else {name}
    return found


def listed(text: str) -> list[str]:
    """The options that a help lists, in order."""
    flags = re.findall(r"^  --([a-z][a-z0-9-]*)", text, flags=re.MULTILINE)
    return [flag.replace("-", "_") for flag in flags]


@pytest.mark.parametrize(("command", "method"), CASES, ids=str)
def test_it_fits_and_lists_every_option_of_the_method_and_no_other(
    command: str, method: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, command, "--help", *([] if method is None else ["--method", method]))
    lines = text.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS
    assert lines[0].startswith(f"usage: valence {command}") and "`" not in text
    kind = config_of(command)
    if command in METHODS and method is None:
        method = kind.method if kind.method in METHODS[command] else None
    own = {item.name for item in fields(METHODS[command][method].options)} if method else set[str]()
    positional = {name for name in shared(kind) if re.search(rf"^  {name.upper()} ", text, flags=re.MULTILINE)}
    found = listed(text)
    assert len(found) == len(set(found)), "an option is listed once"
    assert set(found) == (shared(kind) | own) - positional
    if method:
        assert f"Options of {method}:" in text or not own


def test_it_shows_what_an_option_may_be_its_default_and_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "align", "--help", "--method", "dro")
    assert re.search(r"^  --tau FLOAT +Temperature: .*", text, flags=re.MULTILINE) and "above 0. (1)" in text
    assert "--value token|prompt|batch|prompt-mean|batch-mean" in text
    assert re.search(r"^  --standardize, --no-standardize\n? +Bring .* 1\. \(on\)$", text, flags=re.MULTILINE)
    assert not re.search(r"^  --no-", text, flags=re.MULTILINE), "no option is shown by its negative alone"
    assert re.search(r"^  --batch-size INT .*\(32\)$", text, flags=re.MULTILINE)
    assert re.search(r"^  --strict  ", text, flags=re.MULTILINE), "a flag takes no value"
    assert "--label-smoothing" not in text and "--label-smoothing" in shown(capsys, "align", "--help", "--method=dpo")
    assert "--label-smoothing" not in shown(capsys, "align", "--help")


def test_it_shows_a_presets_values(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["improve-images", "--help", "--method", "ppo"]
    plain, paper = shown(capsys, *words), shown(capsys, *words, "--preset", "paper")
    assert "(0.01)" in plain and "(0.0001)" not in plain
    assert paper.count("(0.0001)") == 2 and "(1/D)" in paper, "clip and lr"


def test_an_unknown_method_or_preset_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["improve-images", "--help", "--method", "ppo", "--preset", "best"])
    assert stop.value.code == 2 and "--preset is 'best', and must be one of paper" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], []])
def test_the_list_of_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    text = capsys.readouterr().out
    assert stop.value.code == (0 if words else 2)
    assert all(f"  {name} " in text for name in COMMANDS) and max(map(len, text.splitlines())) <= COLUMNS

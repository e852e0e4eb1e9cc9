"""The README's commands and Python snippets can be run one after another in a clone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from valence.cli.main import COMMANDS, main, with_config_file
from valence.runs.align import AlignConfig
from valence.runs.run import write_settings
from valence.runs.settings import configure, settings_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
INPUTS = ("feedback", "files", "prompts", "episodes", "eval_feedback", "models", "model", "pipeline", "reward", "judge")
"""Options that name a file, a folder, or something that Valence carries."""
CARRIED = ("small-lm", "small-digits", "default", "length")


def commands() -> list[list[str]]:
    """The words of each `valence` command in a block without a language."""
    lines = [line for language, text in BLOCKS if not language for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("valence ")]


def config_of(words: list[str], folder: Path) -> Any:
    """The configuration that the words of a command describe; a config.yaml of an earlier one is read from `folder`."""
    command, rest = COMMANDS[words[0]], words[1:]
    kind = getattr(import_module(command.module), command.config)
    choose = (lambda config: "pmpo") if kind is AlignConfig else None
    if "--config" in rest:
        place = rest.index("--config") + 1
        rest[place] = str(folder / rest[place])
    return configure(kind, *with_config_file(kind, rest), choose=choose)


def named(settings: dict[str, Any]) -> Iterator[str]:
    """The files and folders that a command reads."""
    for name in INPUTS:
        value = settings.get(name)
        for each in value if isinstance(value, list) else [value]:
            if each and each not in CARRIED:
                yield each.split(":")[0]


def test_there_are_commands_of_most_kinds() -> None:
    used = {words[0] for words in commands()}
    assert used == set(COMMANDS) - {"demo"}, "the demo is `make demo`"


def test_every_command_parses_names_what_is_there_and_writes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    made: list[str] = []
    for words in commands():
        config = config_of(words, tmp_path)
        settings = settings_of(config)
        for path in named(settings):
            there = (ROOT / path).exists() or any(path == out or path.startswith(f"{out}/") for out in made)
            assert there, f"{path} of `valence {' '.join(words)}` is in no clone, and no command before makes it"
        out = settings.get("out")
        assert out not in made, f"{out} is written to twice"
        if out:
            made.append(out)
            (tmp_path / out).mkdir(parents=True)
            write_settings(tmp_path / out, settings)
    written = re.findall(r'out="([^"]+)"', "".join(PYTHON))
    assert len(set(written)) == len(written) and not set(written) & set(made)


def test_functions_of_the_commands_are_there() -> None:
    from valence.rewards.loading import load_function

    named = {word for words in commands() for word in words if ".py:" in word}
    assert len(named) == 3
    for word in named:
        path, _, function = word.partition(":")
        assert callable(load_function(f"{ROOT / path}:{function}", ""))


def test_the_examples_rewards_give_what_they_promise() -> None:
    import numpy as np
    from PIL import Image

    from valence.rewards.loading import load_function

    warm, dark, cost = (
        load_function(f"{ROOT}/examples/rewards.py:{name}", "") for name in ("warm_words", "dark", "cost")
    )
    assert warm(["p"] * 2, ["a good and funny film", "dull"]) == [2.0, 0.0]
    assert dark([Image.new("RGB", (2, 2), "black"), Image.new("L", (2, 2), 255)], ["p"] * 2, [{}] * 2) == [1.0, 0.0]
    assert cost(np.array([0.3, 1.3])) == pytest.approx(1.0)


def test_python_snippets_use_what_they_define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are replaced: the snippets' own names and files are what is checked."""
    import valence

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(valence, "align", lambda feedback, **_: Result(Path(feedback)), raising=False)
    monkeypatch.setattr(valence, "control", lambda *_, **__: None, raising=False)
    monkeypatch.setattr(valence, "PolicyRunner", Runner, raising=False)
    assert len(PYTHON) == 3
    for snippet in PYTHON:
        exec(compile(snippet, "README.md", "exec"), {})


class Result:
    """What `align` returns."""

    method, before, after, model = "pmpo", {}, {}, ""

    def __init__(self, feedback: Path) -> None:
        assert feedback.is_file()


class Runner:
    """A policy that acts."""

    @staticmethod
    def load(folder: str) -> Runner:
        return Runner()

    def act(self, observation: list[float]) -> list[float]:
        assert len(observation) == 5
        return [0.0]


SMALL = {
    "align": "--max-steps 2 --eval-samples 4 --eval-rows 4 --max-new-tokens 8",
    "improve": "--max-steps 1 --num-epochs 1 --eval-samples 4 --max-new-tokens 8 --batch-size 4",
    "reward-model": "--max-steps 2",
    "compare": "--max-new-tokens 8",
    "improve-images": "--max-steps 1 --num-epochs 1 --eval-samples 4 --batch-size 2 --eval-every 0",
    "search": "--budget 40 --quiet",
    "control": "--steps 200 --warmup-steps 100 --eval-episodes 1 --eval-every 0 --hidden 8 --batch-size 8",
    "offline-control": "--steps 2 --hidden 8",
}


@pytest.mark.slow
def test_the_commands_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it stands, but shorter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.setattr("valence.runs.offline_control.VALUE_STEPS", 1)
    for words in commands():
        if words[0] == "control":
            pytest.importorskip("dm_control")
        main([*words, *shlex.split(SMALL.get(words[0], ""))])
    assert (tmp_path / "runs" / "again" / "model").is_dir()

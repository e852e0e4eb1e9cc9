"""A reward of texts by its name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from valence.errors import UserError
from valence.rewards.ensemble import COMBINATIONS, Judge, RewardFn, ensemble
from valence.rewards.functions import READY_REWARDS, RewardFunction, text_of
from valence.rewards.http_judge import PairJudge
from valence.rewards.judge import PairFunction, SelfPlay
from valence.rewards.preference_model import PreferenceModel
from valence.rewards.reward_model import PREFERENCE, RewardModel, training_figures


def load_reward(
    name: str, *, device: str = "cpu", timeout: float = 60.0, cache: Path | None = None, template: str = "helpful",
    argument: str = "reward",
) -> Judge:  # fmt: skip
    """A reward by its name.

    Args:
        name: number, exact, length, bleu, chrf, rouge; regex:EXPRESSION; a folder with a classifier, reward model or
            preference model; mean:A,B, worst:A,B or cautious:A,B of several; judge:MODEL@URL, a model that is asked
            which of two completions is better; module:function or file.py:function; pairwise: and such a function of
            (prompts, first, second) that gives P(first is better).
        device: where a model runs.
        timeout: seconds that a call of a function, or one answer of a model, may take.
        cache: a file that stores the answers of judge:MODEL@URL.
        template: the question to that model: "helpful", "summary", or a text with {prompt}, {first} and {second}.
        argument: the argument that has this name, for messages.
    Returns:
        A `SelfPlay` for a pairwise judge, else a `RewardFunction`.
    Raises:
        UserError: there is no such reward.
    """

    def load(name: str) -> Judge:
        kind, colon, rest = name.partition(":")
        if name in READY_REWARDS:
            return RewardFunction(READY_REWARDS[name], name=name, timeout=timeout)
        if colon and kind == "regex":
            return RewardFunction(_pattern(rest), name=name, timeout=timeout)
        if colon and kind in COMBINATIONS:
            return RewardFunction(together(name, kind, rest), name=name, timeout=math.inf)
        if colon and kind == "pairwise":
            return SelfPlay(PairFunction(load_function(rest, TEXT_REWARDS), name=name, timeout=timeout), name=name)
        if colon and kind == "judge":
            return SelfPlay(_http_judge(name, timeout, cache, template), name=name)
        if Path(name).is_dir():
            if _compares(name):
                return SelfPlay(PreferenceModel(name, device=device), name=name)
            # It is no user's code and runs on the trainer's device, so it has no timeout.
            return RewardFunction(RewardModel(name, device=device), name=name, timeout=math.inf)
        return RewardFunction(load_function(name, TEXT_REWARDS), name=name, timeout=timeout)

    def together(name: str, combination: str, members: str) -> RewardFn:
        parts = [member for member in members.split(",") if member]
        if len(parts) < 2:
            raise UserError(f"{name} needs two rewards or more, with commas between them")
        if pairwise := next(filter(_compares, parts), ""):
            raise UserError(
                f"{name} cannot contain {pairwise}: it compares two completions and gives none a score of its own, "
                "which an ensemble needs; use it alone"
            )
        return ensemble([load(part) for part in parts], COMBINATIONS[combination])

    with about(argument):
        return load(name)


@contextlib.contextmanager
def about(argument: str) -> Iterator[None]:
    """Begin each UserError inside with the argument that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"`{argument}`: {error}") from error


def _compares(name: str) -> bool:
    """Whether a name is that of a pairwise judge, which gives a completion no score of its own."""
    return name.startswith(("judge:", "pairwise:")) or training_figures(name).get("kind") == PREFERENCE


def _http_judge(name: str, timeout: float, cache: Path | None, template: str) -> PairJudge:
    model, at, url = name.removeprefix("judge:").partition("@")
    if not at or not model or not url.startswith(("http://", "https://")):
        raise UserError(f"{name} must have the form judge:MODEL@URL, such as judge:gpt@http://localhost:8000/v1")
    return PairJudge(model, url, template=template, cache=cache, timeout=timeout)


def _pattern(expression: str) -> RewardFn:
    """1 if the expression matches anywhere in the completion, else 0."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise UserError(f"regex:{expression} is no regular expression: {error}") from error
    return lambda completions, **_: [float(bool(compiled.search(text_of(text)))) for text in completions]


TEXT_REWARDS = f"none of {', '.join(READY_REWARDS)}, no folder, and not regex:EXPRESSION, judge:MODEL@URL"


def load_function(name: str, others: str) -> Any:
    """The function that module:function or file.py:function names.

    Args:
        others: the other kinds of name, none of which this is, for messages.
    Raises:
        UserError: there is no such function.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise UserError(
            f"{name!r} is {others}, module:function, file.py:function, or one of these two behind pairwise:"
        )
    try:
        value: Any = getattr(_module(place), function)
    except UserError:
        raise
    except Exception as error:  # importing a user's file may fail in any way
        raise UserError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(value):
        raise UserError(f"{name} is a {type(value).__name__}, and must be a function")
    return value


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise UserError(f"{place} does not exist: give file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module

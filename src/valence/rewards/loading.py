"""A reward by its name on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

from valence.errors import UserError
from valence.rewards.ensemble import WAYS, Ensemble, Judge
from valence.rewards.functions import RewardFunction, ready_rewards, text_of


def load_reward(
    name: str, *, device: str = "cpu", timeout: float = 60.0, kept: Path | None = None, template: str = "helpful",
    option: str = "--reward",
) -> Any:  # fmt: skip
    """A reward by its name on the command line.

    Args:
        name: number, exact, length, bleu, chrf, rouge; regex:EXPRESSION; a folder with a classifier, reward model or
            preference model; mean:A,B, worst:A,B or cautious:A,B of several; judge:MODEL@URL, a model asked which of
            two is better; module:function or file.py:function; pairwise: and such a function of (prompts, first,
            second) that gives P(first is better).
        kept: a file for a judge's answers.
        template: the judge's.
        option: what the user calls it, for messages.
    Returns:
        a callable as `RewardFunction`, with its `name` and `failures`.
    Raises:
        UserError: there is none of that name.
    """
    try:
        return _load(name, device, timeout, kept, template)
    except UserError as error:
        raise UserError(str(error).replace("--reward", option, 1)) from error


def _load(name: str, device: str, timeout: float, kept: Path | None, template: str) -> Any:
    ready = ready_rewards()
    if name in ready:
        return RewardFunction(ready[name], name=name, timeout=timeout)
    if name.startswith("regex:"):
        return RewardFunction(_pattern(name[6:]), name=name, timeout=timeout)
    way, found, members = name.partition(":")
    if found and way in WAYS:
        return RewardFunction(_ensemble(name, way, members, device, timeout), name=name, timeout=math.inf)
    if _compares(name):
        from valence.rewards.judge import SelfPlay

        return SelfPlay(_pair_judge(name, device, timeout, kept, template), name=name)
    if Path(name).is_dir():
        from valence.rewards.reward_model import RewardModel

        # It runs on the trainer's own device and is not a stranger's code: a slow one is waited for.
        return RewardFunction(RewardModel(name, device=device), name=name, timeout=math.inf)
    return RewardFunction(load_function(name), name=name, timeout=timeout)


def _ensemble(name: str, way: str, members: str, device: str, timeout: float) -> Ensemble:
    parts = [member for member in members.split(",") if member]
    if len(parts) < 2:
        raise UserError(f"--reward {name} needs two rewards or more with commas between")
    if alone := next((part for part in parts if _compares(part)), None):
        raise UserError(
            f"--reward {name}: {alone} compares two completions and gives none a score of its own, which an ensemble "
            "needs: leave it out, or give it alone"
        )
    return Ensemble([load_reward(part, device=device, timeout=timeout) for part in parts], way)


def _compares(name: str) -> bool:
    """Whether a name leads to a pairwise judge, which gives a completion no score of its own."""
    if name.startswith(("judge:", "pairwise:")):
        return True
    if not Path(name).is_dir():
        return False
    from valence.rewards.reward_model import PREFERENCE, training_figures

    return training_figures(name).get("kind") == PREFERENCE


def _pair_judge(name: str, device: str, timeout: float, kept: Path | None, template: str) -> Any:
    from valence.rewards.judge import PairFunction, PairJudge

    if name.startswith("pairwise:"):
        return PairFunction(load_function(name.removeprefix("pairwise:")), name=name, timeout=timeout)
    if not name.startswith("judge:"):
        from valence.rewards.preference_model import PreferenceModel

        return PreferenceModel(name, device=device)
    model, found, url = name.removeprefix("judge:").partition("@")
    if not found or not model or not url.startswith(("http://", "https://")):
        raise UserError(f"--reward {name} must be judge:MODEL@URL, such as judge:gpt@http://localhost:8000/v1")
    return PairJudge(model, url, template=template, cache=kept, timeout=timeout)


def _pattern(expression: str) -> Judge:
    """1 where the expression is found, else 0."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise UserError(f"--reward regex:{expression} is no regular expression: {error}") from error
    return lambda completions, **_: [float(bool(compiled.search(text_of(text)))) for text in completions]


def load_function(name: str, *, option: str = "--reward", others: str | None = None) -> Any:
    """module:function or file.py:function.

    Args:
        option: what the user calls it, for messages.
        others: what else it could have been and is not, for messages.
    Raises:
        UserError: there is no such function.
    """
    place, found, function = name.rpartition(":")
    if not found or not place or not function:
        kinds = ", ".join(ready_rewards())
        others = others or f"none of {kinds}, no folder, and not regex:EXPRESSION, judge:MODEL@URL"
        raise UserError(
            f"{option} {name} is {others}, module:function, file.py:function, or one of these two behind pairwise:"
        )
    try:
        judge: Any = getattr(_module(place, option), function)
    except UserError:
        raise
    except Exception as error:  # importing a user's file may fail in any way
        raise UserError(f"{option} {name} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(judge):
        raise UserError(f"{option} {name} is a {type(judge).__name__}, and must be a function")
    return judge


def _module(place: str, option: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise UserError(f"{option} {place} is not there: give file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module

"""Minimise a function by a `PreferenceSearch`: evaluate, tell, keep the curve of the best value, draw it."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from valence.errors import UserError
from valence.rewards.loading import load_function
from valence.search.functions import FUNCTIONS
from valence.search.search import PreferenceSearch

Curve = list[list[int | float]]
"""Evaluations and best value, at each improvement."""
Function = Callable[[np.ndarray], Any]


def minimize(
    function: Function, search: PreferenceSearch, curve: Curve, *, budget: int, target: float | None = None,
    on_step: Callable[[str | None], None] = lambda ended: None, save: Callable[[PreferenceSearch], None] | None = None,
) -> str:  # fmt: skip
    """Run until the target, the budget or the search's own end; returns which of them.

    Args:
        curve: grows with the search.
        target: stop at this value or below.
        on_step: called after each step, with the reason where it is the last.
        save: called with the search as it was before the step in which the function raised or a person stopped it.
    Raises:
        UserError: the function raised, or returned no number.
    """
    ended, before = _ended(search, budget, target) if search.best else None, search
    try:
        while ended is None:
            before = copy.deepcopy(search) if save is not None else search
            x = search.ask(min(search.remaining, budget - search.num_judged))
            search.tell(x, values=[evaluate(function, point) for point in x])
            assert search.best is not None
            if not curve or search.best[0] < curve[-1][1]:
                curve.append([search.num_judged, search.best[0]])
            ended = _ended(search, budget, target)
            on_step(ended)
    except BaseException:
        if save is not None and before.best is not None:
            save(before)
        raise
    return ended


def _ended(search: PreferenceSearch, budget: int, target: float | None) -> str | None:
    assert search.best is not None
    if target is not None and search.best[0] <= target:
        return "target reached"
    return "budget spent" if search.num_judged >= budget else search.stop()


def evaluate(function: Function, x: np.ndarray) -> float:
    """One value as a float; infinity is allowed, as the worst.

    Raises:
        UserError: the function raised, or returned NaN, -inf or no number.
    """
    where = f"at x = [{', '.join(f'{part:g}' for part in x[:6])}{', …' if len(x) > 6 else ''}]"
    try:
        value = function(x.copy())
    except Exception as error:
        raise UserError(f"the function raised {type(error).__name__}: {error} {where}") from error
    try:
        number = float(value.item() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError) as error:
        raise UserError(f"the function returned {value!r}, not a number, {where}") from error
    if math.isnan(number) or number == -math.inf:
        raise UserError(f"the function returned {number} {where}; return inf for points that are not allowed")
    return number


def find_function(name: str, dim: int) -> tuple[Function, float, float]:
    """The function of this name, and its usual bounds.

    Raises:
        UserError: there is none, it cannot be imported, or it cannot have so few coordinates.
    """
    if ":" in name:
        # A module beside the user is found, as python finds it.
        sys.path.insert(0, "")
        try:
            return load_function(name, f"none of {', '.join(FUNCTIONS)}"), -5.0, 5.0
        finally:
            sys.path.remove("")
    if name not in FUNCTIONS:
        names = ", ".join(FUNCTIONS)
        raise UserError(f"there is no function {name!r}: give {names}, module:function or file.py:function")
    known = FUNCTIONS[name]
    if dim < known.least_dim:
        raise UserError(f"{name} needs `dim={known.least_dim}` or more")
    return known.function, known.low, known.high


def plot_curve(curve: Curve, num_judged: int, path: Path) -> None:
    """The best value against evaluations: logarithmic where all values are positive."""
    from matplotlib.figure import Figure

    steps, values = [*(point[0] for point in curve), num_judged], [*(point[1] for point in curve), curve[-1][1]]
    figure = Figure(figsize=(6.4, 4))
    axis = figure.subplots()
    axis.step(steps, values, where="post")
    if min(values) > 0 and math.isfinite(max(values)):
        axis.set_yscale("log")
    axis.set_xlabel("evaluations")
    axis.set_ylabel("best value so far")
    axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=120)

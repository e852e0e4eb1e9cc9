"""`valence search` as a function: minimise, watch, save, draw the curve."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from valence.errors import UserError
from valence.objectives import PMPO
from valence.search.search import PreferenceSearch, Result
from valence.search.space import Space

Curve = list[list[int | float]]
"""Evaluations and best value, at each improvement."""
SAVE_EVERY = 2.0
"""Seconds between saves; at most one step is lost where a step takes longer."""
STATE, RESULTS, PICTURE = "search.json", "results.json", "convergence.png"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a run is told.

    Args:
        budget: evaluations in all.
        target: stop at this value or below; None: never.
        out: folder for the results, the picture and the saved search.
        resume: go on from the search saved in `out`.
        show: lines of progress on standard error.
    """

    budget: int
    target: float | None = None
    out: Path | None = None
    resume: bool = False
    show: bool = True


def run_search(
    function: Callable[[np.ndarray], Any],
    make: Callable[[], PreferenceSearch],
    options: SearchOptions,
    about: dict[str, Any] | None = None,
) -> tuple[Result, str]:
    """Minimise `function` until the target, the budget or the search's own end.

    Args:
        make: builds the search where none is resumed.
        about: how the run was asked for, JSON values; a resumed run must have been asked for the same way.
    Returns:
        What was found, and why it ended.
    Raises:
        UserError: the function raised, or returned no number; there is nothing to resume; or `out` cannot be written.
    """
    about = about or {}
    if options.out is not None and (options.out / STATE).exists() and not options.resume:
        raise UserError(f"{options.out} holds a search already: give --resume to go on with it, or another --out")
    search, curve = _resumed(options.out, about) if options.resume else (make(), [])
    why = _ended(search, options) if search.best else None
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write into {options.out}: {error.strerror}") from error
    bar, saved, before = _Bar(options), time.monotonic(), search
    try:
        while why is None:
            before = copy.deepcopy(search) if options.out is not None else search
            x = search.ask(min(search.missing, options.budget - search.told))
            search.tell(x, values=[evaluate(function, point) for point in x])
            assert search.best is not None
            if not curve or search.best[0] < curve[-1][1]:
                curve.append([search.told, search.best[0]])
            why = _ended(search, options)
            if options.out is not None and (why or time.monotonic() - saved > SAVE_EVERY):
                _save(search, curve, about, options.out)
                saved = time.monotonic()
            bar(search, final=why is not None)
    except BaseException:
        # The function raised, or a person stopped it: what was told of is not lost, and is asked for anew.
        if options.out is not None and before.best is not None:
            _save(before, curve, about, options.out)
        raise
    finally:
        bar.close()
    if options.out is not None:
        _write(search, curve, about, why, options.out)
    return search.result, why


def _ended(search: PreferenceSearch, options: SearchOptions) -> str | None:
    assert search.best is not None
    if options.target is not None and search.best[0] <= options.target:
        return "target reached"
    return "budget spent" if search.told >= options.budget else search.stop()


def evaluate(function: Callable[[np.ndarray], Any], x: np.ndarray) -> float:
    """One value, as a float; infinity is allowed, as the worst.

    Raises:
        UserError: the function raised, or returned NaN, -inf or no number; the message says at which x.
    """
    where = f"at x = [{', '.join(f'{part:g}' for part in x[:6])}{', …' if len(x) > 6 else ''}]"
    try:
        value = function(x.copy())
    except Exception as error:
        raise UserError(f"the function raised {type(error).__name__}: {error} {where}") from error
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError) as error:
        raise UserError(f"the function returned {value!r}, not a number, {where}") from error
    if math.isnan(number) or number == -math.inf:
        raise UserError(f"the function returned {number} {where}; return inf for points that are not allowed")
    return number


def _save(search: PreferenceSearch, curve: Curve, about: dict[str, Any], out: Path) -> None:
    search.save(out / STATE, extra={"about": about, "curve": curve})


def _resumed(out: Path | None, about: dict[str, Any]) -> tuple[PreferenceSearch, Curve]:
    if out is None or not (out / STATE).is_file():
        raise UserError(f"there is no saved search in {out}: start without --resume")
    search = PreferenceSearch.load(out / STATE)
    was = search.extra.get("about", {})
    for name, value in about.items():
        if was.get(name) != value:
            raise UserError(
                f"the saved search in {out} has {name} = {was.get(name)}, not {value}: resume with the same"
            )
    return search, search.extra.get("curve", [])


def _write(search: PreferenceSearch, curve: Curve, about: dict[str, Any], why: str, out: Path) -> None:
    found = asdict(search.result) | {"x": search.result.x.tolist()}
    if found["value"] is not None and not math.isfinite(found["value"]):
        # JSON has no infinity.
        found["value"] = None
    tree = about | {"result": found, "stopped": why, "mean": search.mean.tolist(), "curve": curve}
    (out / RESULTS).write_text(json.dumps(tree, indent=1) + "\n")
    plot_curve(curve, search.told, out / PICTURE)


def plot_curve(curve: Curve, told: int, path: Path) -> None:
    """The best value against evaluations: logarithmic where all values are positive."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [*(point[0] for point in curve), told]
    values = [*(point[1] for point in curve), curve[-1][1]]
    figure, axis = plt.subplots(figsize=(6.4, 4))
    axis.step(steps, values, where="post")
    if min(values) > 0 and math.isfinite(max(values)):
        axis.set_yscale("log")
    axis.set_xlabel("evaluations")
    axis.set_ylabel("best value so far")
    axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


class _Bar:
    """Progress on standard error: a bar on a terminal, some ten plain lines elsewhere."""

    def __init__(self, options: SearchOptions) -> None:
        self.budget, self.show = options.budget, options.show
        self._every = max(1, options.budget // 10)
        self._next = 0
        self._bar: Any = None
        if options.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("evaluations"),
                MofNCompleteColumn(),
                BarColumn(20),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=options.budget)
            self._bar.start()

    def __call__(self, search: PreferenceSearch, *, final: bool) -> None:
        assert search.best is not None
        said = f"best {search.best[0]:.3e}  size {search.policy.size:.1e}  restarts {search.result.restarts}"
        if self._bar is not None:
            self._bar.update(self._task, completed=min(search.told, self.budget), description=said)
        elif self.show and (final or search.told >= self._next):
            print(f"  {search.told}/{self.budget} evaluations  {said}", file=sys.stderr, flush=True)
        while self._next <= search.told:
            self._next += self._every

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def make_search(space: Space, *, alpha: float, beta: float | None, **options: Any) -> PreferenceSearch:
    """A `PreferenceSearch`, a bad argument told as one clear line.

    Raises:
        UserError: an argument out of range.
    """
    try:
        return PreferenceSearch(space, PMPO(alpha=alpha, beta="auto" if beta is None else beta), **options)
    except ValueError as error:
        raise UserError(str(error)) from error

"""Search as a run: minimise a function, show progress, save, draw the curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from valence.errors import UserError
from valence.runs.methods import SEARCH
from valence.runs.options import Count, Finite, Options
from valence.runs.run import Log, RunResult, claim, write_settings
from valence.runs.settings import NoOptions, RunConfig, settings_of
from valence.search.minimize import Curve, Function, find_function, minimize, plot_curve
from valence.search.search import PreferenceSearch
from valence.search.space import Box
from valence.training.progress import Column, Progress

SAVE_EVERY = 2.0
"""Seconds between saves."""
STATE, RESULTS, PICTURE = "search.json", "results.json", "convergence.png"
COLUMNS: tuple[Column, ...] = (
    ("best", "best", "{:.3e}"),
    ("size", "size", "{:.1e}"),
    ("restarts", "restarts", "{:.0f}"),
)


@dataclass(frozen=True)
class SearchOptions(Options):
    """Where and how long to search."""

    dim: Count | None = None
    """Number of coordinates."""
    budget: Count = 10_000
    """Evaluations in all."""
    low: Finite | None = None
    """Lower bound of every coordinate; a named function's own, or -5, by default."""
    high: Finite | None = None
    """Upper bound of every coordinate; a named function's own, or 5, by default."""
    sigma: float = 0.3
    """Initial standard deviation, as a fraction of the width."""
    covariance: Literal["full", "diagonal"] = "full"
    """diagonal is faster in many dimensions."""
    kl: Literal["sampled", "exact"] = "sampled"
    """The KL's expectation: over the draw itself, or in closed form."""
    population: int | None = None
    """Points in an improvement step; from the dimension by default."""
    restarts: int = 9
    """How often to start again with twice the population after a run has converged."""
    target: Finite | None = None
    """Stop at this value."""
    seed: int = 0
    """Random seed; the same seed gives the same bits."""
    resume: bool = False
    """Continue the search saved in the output folder."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """Find where a function is smallest, by asking for points and learning from which half of them is better."""

    command: ClassVar[str] = "search"
    required: ClassVar[tuple[str, ...]] = ("function",)
    usage: ClassVar[str] = "valence search FUNCTION --dim D"

    function: tyro.conf.Positional[str] = ""
    """sphere, rosenbrock, double-sum, schwefel, ellipsoid, cigar, different-powers, ackley, griewank, rastrigin; or
    package.module:function or file.py:function, which takes an array of dim numbers and returns one."""
    out: str = ""
    """Folder for results.json, convergence.png and the saved search; nothing is written without it."""
    method: str = "pmpo"
    """The method: pmpo."""
    preset: str | None = None
    """The paper's alpha and beta: ar (accepted and rejected), a (accepted alone), r (rejected alone)."""
    options: Any = field(default_factory=NoOptions)
    search: SearchOptions = field(default_factory=SearchOptions)


def run_search_command(config: SearchConfig, *, log: Log = print, show: bool = True) -> RunResult:
    """Run what `config` describes."""
    options = config.search
    if options.dim is None:
        raise UserError(f"dim missing: {config.usage}")
    function, low, high = find_function(config.function, options.dim)
    low, high = low if options.low is None else options.low, high if options.high is None else options.high
    options = replace(options, low=low, high=high)
    if options.resume and not config.out:
        raise UserError("`resume` needs `out`, the folder to continue in")
    objective = SEARCH[config.method].make(config.options)
    objective = replace(objective, alpha=objective.accepted_weight)

    def make() -> PreferenceSearch:
        names = ("sigma", "covariance", "kl", "population", "restarts", "seed")
        box = Box(low, high, options.dim)
        return PreferenceSearch(box, objective, **{name: getattr(options, name) for name in names})

    settings = settings_of(replace(config, search=options))
    out = Path(config.out) if config.out else None
    result = run_search(function, make, options, out, settings, show=show and not options.quiet)
    found = result.details["result"]
    log(
        f"{result.stopped} after {found['num_judged']} evaluations, {result.steps} steps, "
        f"{found['restarts']} restarts\n"
        f"value {found['value']:.9g} at x = [{', '.join(f'{part:.9g}' for part in found['x'])}]"
    )
    if out is not None:
        log(f"written: {out / RESULTS}")
    return result


def run_search(
    function: Function, make: Callable[[], PreferenceSearch], options: SearchOptions, out: Path | None = None,
    settings: Mapping[str, Any] | None = None, *, show: bool = False,
) -> RunResult:  # fmt: skip
    """Minimise `function` until the target, the budget or the search's own end.

    Args:
        make: builds the search where none is resumed.
        settings: the configuration, for config.yaml; a resumed run must have the same.
    Returns:
        The result; `stopped` says why it ended, `details` hold "result" (x, value, …), "mean" and "curve".
    Raises:
        UserError: the function raised, or returned no number; an argument is out of range; there is nothing to resume;
            or `out` cannot be written.
    """
    settings, curve = dict(settings or {}), Curve()
    try:
        search = make()
    except ValueError as error:
        raise UserError(str(error)) from error
    if out is not None:
        if options.resume and not (out / STATE).is_file():
            raise UserError(f"there is no saved search in {out}: start without `resume`")
        claim(out, settings, resume=options.resume)
        if options.resume:
            search = PreferenceSearch.load(out / STATE)
            curve = search.extra.get("curve", [])
        write_settings(out, settings)
    progress = Progress(options.budget, start=search.num_judged, show=show, unit="evaluations", columns=COLUMNS)
    saved = time.monotonic()

    def save(state: PreferenceSearch) -> None:
        if out is not None:
            state.save(out / STATE, extra={"curve": curve})

    def on_step(ended: str | None) -> None:
        nonlocal saved
        if ended or time.monotonic() - saved > SAVE_EVERY:
            save(search)
            saved = time.monotonic()
        best = math.nan if search.best is None else search.best[0]
        figures = {"best": best, "size": search.policy.size, "restarts": float(search.result.restarts)}
        progress(search.num_judged, figures, last=ended is not None)

    try:
        ended = minimize(
            function, search, curve, budget=options.budget, target=options.target, on_step=on_step,
            save=None if out is None else save,
        )  # fmt: skip
    finally:
        progress.close()
    found = asdict(search.result) | {"x": search.result.x.tolist()}
    if found["value"] is not None and not math.isfinite(found["value"]):
        # JSON has no infinity.
        found["value"] = None
    details = {"result": found, "mean": search.mean.tolist(), "curve": curve}
    if out is not None:
        (out / RESULTS).write_text(json.dumps(settings | {"stopped": ended} | details, indent=1) + "\n")
        plot_curve(curve, search.num_judged, out / PICTURE)
    return RunResult(out or Path(), "pmpo", search.steps, ended, details=details)

"""Search as a run: minimise a function, show progress, save, draw the curve."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from valence.errors import UserError
from valence.runs.methods import SEARCH
from valence.runs.options import Count, Finite, Options
from valence.runs.run import Log, RunResult, claim, write_settings
from valence.runs.settings import NoOptions, RunConfig, settings_of
from valence.search.minimize import Curve, find_function, minimize, plot_curve
from valence.search.search import PreferenceSearch
from valence.search.space import Box
from valence.training.interrupt import Interrupted, Signals
from valence.training.progress import Column, Progress

SAVE_EVERY = 2.0
"""Seconds between saves."""
STATE, RESULTS, PICTURE = "search.json", "results.json", "convergence.png"
COLUMNS: tuple[Column, ...] = (
    ("best", "best", "{:.3e}"), ("size", "size", "{:.1e}"), ("restarts", "restarts", "{:.0f}"),
)  # fmt: skip


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


def run_search(config: SearchConfig, *, log: Log = print, show: bool = True) -> RunResult:
    """Search until the target, the budget or the search's own end.

    Returns:
        The result; `stopped` says why it ended, `details` hold "result" (x, value, …), "mean" and "curve".
    Raises:
        UserError: the function raised, or returned no number; an argument is out of range; there is nothing to resume;
            or `out` cannot be written.
    """
    options, out = config.search, Path(config.out) if config.out else None
    if options.dim is None:
        raise UserError(f"dim missing: {config.usage}")
    function, low, high = find_function(config.function, options.dim)
    low, high = low if options.low is None else options.low, high if options.high is None else options.high
    settings = settings_of(replace(config, search=replace(options, low=low, high=high)))
    if options.resume and out is None:
        raise UserError("`resume` needs `out`, the folder to continue in")
    search, curve = _make(config, low, high, options.dim), Curve()
    if out is not None:
        if options.resume and not (out / STATE).is_file():
            raise UserError(f"there is no saved search in {out}: start without `resume`")
        claim(out, settings, resume=options.resume)
        if options.resume:
            search = PreferenceSearch.load(out / STATE)
            curve = search.extra.get("curve", [])
        write_settings(out, settings)
    progress = Progress(
        options.budget, start=search.num_judged, show=show and not options.quiet, unit="evaluations", columns=COLUMNS
    )
    saved = time.monotonic()

    judged = search.num_judged

    def save(state: PreferenceSearch) -> None:
        nonlocal judged
        if out is not None:
            state.save(out / STATE, extra={"curve": curve})
            judged = state.num_judged

    def on_step(ended: str | None) -> None:
        nonlocal saved
        if ended or time.monotonic() - saved > SAVE_EVERY:
            save(search)
            saved = time.monotonic()
        best = math.nan if search.best is None else search.best[0]
        figures = {"best": best, "size": search.policy.size, "restarts": float(search.result.restarts)}
        progress(search.num_judged, figures, last=ended is not None)

    try:
        with Signals():
            ended = minimize(
                function, search, curve, budget=options.budget, target=options.target, on_step=on_step,
                save=None if out is None else save,
            )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(error.number, _rest(out, judged)) from None
    finally:
        progress.close()
    result = search.result
    # JSON has no infinity.
    value = result.value if result.value is not None and math.isfinite(result.value) else None
    details = {
        "result": asdict(result) | {"x": result.x.tolist(), "value": value}, "mean": search.mean.tolist(),
        "curve": curve,
    }  # fmt: skip
    log(
        f"{ended} after {result.num_judged} evaluations, {search.steps} steps, {result.restarts} restarts\n"
        f"value {result.value:.9g} at x = [{', '.join(f'{part:.9g}' for part in result.x)}]"
    )
    if out is not None:
        (out / RESULTS).write_text(json.dumps(settings | {"stopped": ended} | details, indent=1) + "\n")
        plot_curve(curve, search.num_judged, out / PICTURE)
        log(f"written: {out / RESULTS}")
    return RunResult(out or Path(), config.method, search.steps, ended, details=details)


def _rest(out: Path | None, judged: int) -> str:
    """What an interrupted search leaves behind, and how to go on."""
    if out is None:
        return "nothing is saved: give `out` to go on later with `resume`"
    if not judged:
        return "within the first step: there is nothing to save"
    return f"{judged:,} evaluations are saved in {out / STATE}: go on with `resume`"


def _make(config: SearchConfig, low: float, high: float, dim: int) -> PreferenceSearch:
    objective, options = SEARCH[config.method].make(config.options), config.search
    try:
        return PreferenceSearch(
            Box(low, high, dim), replace(objective, alpha=objective.accepted_weight), sigma=options.sigma,
            covariance=options.covariance, kl=options.kl, population=options.population, restarts=options.restarts,
            seed=options.seed,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error

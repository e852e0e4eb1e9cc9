"""Search as a run: minimise a function, show progress, save, draw the curve."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tyro

from valence.errors import UserError
from valence.rewards.loading import load_function
from valence.runs.methods import SEARCH
from valence.runs.options import check_numbers
from valence.runs.progress import Column, Progress
from valence.runs.run import Log, RunResult, claim, settings_of, write_settings
from valence.runs.settings import NoOptions, RunConfig
from valence.search.functions import FUNCTIONS
from valence.search.search import PreferenceSearch
from valence.search.space import Box

Curve = list[list[int | float]]
"""Evaluations and best value, at each improvement."""
Function = Callable[[np.ndarray], Any]
SAVE_EVERY = 2.0
"""Seconds between saves."""
STATE, RESULTS, PICTURE = "search.json", "results.json", "convergence.png"
COLUMNS: tuple[Column, ...] = (
    ("best", "best", "{:.3e}"),
    ("size", "size", "{:.1e}"),
    ("restarts", "restarts", "{:.0f}"),
)
CURVE_TITLE = "best value so far"


@dataclass(frozen=True)
class SearchOptions:
    """Where and how long to search."""

    dim: int | None = None
    """Number of coordinates."""
    budget: int = 10_000
    """Evaluations in all."""
    low: float | None = None
    """Lower bound of every coordinate; a named function's own, or -5, by default."""
    high: float | None = None
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
    target: float | None = None
    """Stop at this value."""
    seed: int = 0
    """Random seed; the same seed gives the same bits."""
    resume: bool = False
    """Continue the search saved in the output folder."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check_numbers(self, "dim", "budget", least=1)
        check_numbers(self, "low", "high", "target")


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """Find where a function is smallest, by asking for points and learning from which half of them is better."""

    place: ClassVar[str] = "search"
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
    options = replace(
        options, low=low if options.low is None else options.low, high=high if options.high is None else options.high
    )
    if options.resume and not config.out:
        raise UserError("`resume` needs `out`, the folder to continue in")
    objective = SEARCH[config.method].make(config.options)
    objective = replace(objective, alpha=objective.accepted_weight)

    def make() -> PreferenceSearch:
        names = ("sigma", "covariance", "kl", "population", "restarts", "seed")
        box = Box(options.low, options.high, options.dim)
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
    settings = dict(settings or {})
    try:
        search, curve = make(), Curve()
    except ValueError as error:
        raise UserError(str(error)) from error
    if out is not None:
        claim(out, settings, resume=options.resume)
        if options.resume:
            search, curve = _saved(out)
        write_settings(out, settings)
    why = _ended(search, options) if search.best else None
    progress = Progress(options.budget, start=search.num_judged, show=show, unit="evaluations", columns=COLUMNS)
    saved, before = time.monotonic(), search
    try:
        while why is None:
            before = copy.deepcopy(search) if out is not None else search
            x = search.ask(min(search.remaining, options.budget - search.num_judged))
            search.tell(x, values=[evaluate(function, point) for point in x])
            assert search.best is not None
            if not curve or search.best[0] < curve[-1][1]:
                curve.append([search.num_judged, search.best[0]])
            why = _ended(search, options)
            if out is not None and (why or time.monotonic() - saved > SAVE_EVERY):
                search.save(out / STATE, extra={"curve": curve})
                saved = time.monotonic()
            restarts = float(search.result.restarts)
            progress(
                search.num_judged if why is None else max(search.num_judged, options.budget),
                {"best": search.best[0], "size": search.policy.size, "restarts": restarts},
            )  # fmt: skip
    except BaseException:
        # The function raised, or a person stopped it: points judged before this step are saved.
        if out is not None and before.best is not None:
            before.save(out / STATE, extra={"curve": curve})
        raise
    finally:
        progress.close()
    details = _details(search, curve)
    if out is not None:
        tree = settings | {"stopped": why} | details
        (out / RESULTS).write_text(json.dumps(tree, indent=1) + "\n")
        plot_curve(curve, search.num_judged, out / PICTURE)
    return RunResult(out or Path(), "pmpo", search.steps, why, details=details)


def _ended(search: PreferenceSearch, options: SearchOptions) -> str | None:
    assert search.best is not None
    if options.target is not None and search.best[0] <= options.target:
        return "target reached"
    return "budget spent" if search.num_judged >= options.budget else search.stop()


def evaluate(function: Function, x: np.ndarray) -> float:
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
        number = float(value.item() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError) as error:
        raise UserError(f"the function returned {value!r}, not a number, {where}") from error
    if math.isnan(number) or number == -math.inf:
        raise UserError(f"the function returned {number} {where}; return inf for points that are not allowed")
    return number


def _saved(out: Path) -> tuple[PreferenceSearch, Curve]:
    """The saved search with its curve."""
    if not (out / STATE).is_file():
        raise UserError(f"there is no saved search in {out}: start without `resume`")
    search = PreferenceSearch.load(out / STATE)
    return search, search.extra.get("curve", [])


def _details(search: PreferenceSearch, curve: Curve) -> dict[str, Any]:
    found = asdict(search.result) | {"x": search.result.x.tolist()}
    if found["value"] is not None and not math.isfinite(found["value"]):
        # JSON has no infinity.
        found["value"] = None
    return {"result": found, "mean": search.mean.tolist(), "curve": curve}


def plot_curve(curve: Curve, num_judged: int, path: Path) -> None:
    """The best value against evaluations: logarithmic where all values are positive."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [*(point[0] for point in curve), num_judged]
    values = [*(point[1] for point in curve), curve[-1][1]]
    figure, axis = plt.subplots(figsize=(6.4, 4))
    axis.step(steps, values, where="post")
    if min(values) > 0 and math.isfinite(max(values)):
        axis.set_yscale("log")
    axis.set_xlabel("evaluations")
    axis.set_ylabel(CURVE_TITLE)
    axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def find_function(name: str, dim: int) -> tuple[Function, float, float]:
    """The function of this name, and the bounds that are usual for it.

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
        raise UserError(
            f"there is no function {name!r}; there are {', '.join(FUNCTIONS)}, and your own as module:function or "
            "file.py:function"
        )
    known = FUNCTIONS[name]
    if dim < known.least_dim:
        raise UserError(f"{name} needs `dim={known.least_dim}` or more")
    return known.function, known.low, known.high

"""`valence search FUNCTION --dim D …`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from valence.cli.parse import parse
from valence.errors import UserError

PRESETS = {"ar": (0.5, 0.5), "a": (1.0, 0.0), "r": (0.0, 2.0)}
"""The paper's alpha and beta."""


@dataclass(frozen=True)
class Search:
    """Find where a function is smallest, by asking for points and learning from which half of them is better."""

    function: tyro.conf.Positional[str]
    """sphere, rosenbrock, double-sum, schwefel, ellipsoid, cigar, different-powers, ackley, griewank, rastrigin; or
    package.module:function or file.py:function, which takes an array of dim numbers and returns one."""
    dim: int
    """How many coordinates."""
    method: Literal["pmpo"] = "pmpo"
    """What learns."""
    preset: Literal["ar", "a", "r"] | None = None
    """The paper's alpha and beta: accepted and rejected, accepted alone, rejected alone."""
    alpha: float | None = None
    """Weight of accepted against rejected, 0 to 1; 0.5 where not given."""
    beta: float | None = None
    """KL weight of the mean's step; the smallest bounded one where not given."""
    budget: int = 10_000
    """Evaluations in all."""
    low: float | None = None
    """Lower bound of every coordinate; a named function's own, or -5."""
    high: float | None = None
    """Upper bound of every coordinate; a named function's own, or 5."""
    sigma: float = 0.3
    """First standard deviation, as a part of the width."""
    covariance: Literal["full", "diagonal"] = "full"
    """Diagonal is faster in many dimensions."""
    kl: Literal["sampled", "exact"] = "sampled"
    """The KL's expectation: over the draw itself, or in closed form."""
    population: int | None = None
    """Points to an improvement step; from the dimension where not given."""
    restarts: int = 9
    """How often to begin anew with twice the population when nothing more is to be found."""
    target: float | None = None
    """Stop at this value."""
    seed: int = 0
    """Same seed, same bits."""
    out: str = ""
    """Folder for results.json, convergence.png and the saved search; nothing is written where not given."""
    resume: bool = False
    """Go on from the search saved in --out."""
    quiet: bool = False
    """No progress."""


def run(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse(Search, arguments, prog="valence search")
    function, low, high = find_function(options.function, options.dim)
    low = low if options.low is None else options.low
    high = high if options.high is None else options.high
    if options.budget < 1:
        raise UserError(f"--budget is {options.budget}, and must be at least 1")
    if options.resume and not options.out:
        raise UserError("--resume needs --out, the folder to go on in")
    from valence.runs.search import SearchOptions, make_search, run_search
    from valence.search.space import Box

    try:
        space = Box(low, high, options.dim)
    except ValueError as error:
        raise UserError(str(error)) from error
    alpha, beta = _alpha_beta(options)
    about = {
        "function": options.function, "dim": options.dim, "low": low, "high": high, "alpha": alpha, "beta": beta,
        "sigma": options.sigma, "covariance": options.covariance, "kl": options.kl, "population": options.population,
        "restarts": options.restarts, "seed": options.seed,
    }  # fmt: skip

    def make() -> Any:
        names = ("sigma", "covariance", "kl", "population", "restarts", "seed")
        return make_search(space, alpha=alpha, beta=beta, **{name: getattr(options, name) for name in names})

    result, why = run_search(
        function,
        make,
        SearchOptions(
            budget=options.budget, target=options.target, out=Path(options.out) if options.out else None,
            resume=options.resume, show=not options.quiet,
        ),
        about,
    )  # fmt: skip
    print(f"{why} after {result.told} evaluations, {result.steps} steps, {result.restarts} restarts")
    print(f"value {result.value:.9g} at x = [{', '.join(f'{part:.9g}' for part in result.x)}]")
    if options.out:
        print(f"written: {Path(options.out) / 'results.json'}")


def _alpha_beta(options: Search) -> tuple[float, float | None]:
    if options.preset is None:
        return 0.5 if options.alpha is None else options.alpha, options.beta
    if options.alpha is not None or options.beta is not None:
        raise UserError("--preset sets alpha and beta: give it or them, not both")
    return PRESETS[options.preset]


def find_function(name: str, dim: int) -> tuple[Callable[..., Any], float, float]:
    """The function of this name, and the bounds that are usual for it.

    Raises:
        UserError: there is none, it cannot be imported, or it cannot have so few coordinates.
    """
    from valence.search.functions import FUNCTIONS

    if dim < 1:
        raise UserError(f"--dim is {dim}, and must be at least 1")
    if ":" in name:
        return _import_function(name), -5.0, 5.0
    if name not in FUNCTIONS:
        raise UserError(
            f"there is no function {name!r}; there are {', '.join(FUNCTIONS)}, and your own as module:function or "
            "file.py:function"
        )
    known = FUNCTIONS[name]
    if dim < known.least_dim:
        raise UserError(f"{name} needs --dim {known.least_dim} or more")
    return known.function, known.low, known.high


def _import_function(name: str) -> Callable[..., Any]:
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            module = _import_file(Path(place))
        else:
            sys.path.insert(0, "")
            try:
                module = importlib.import_module(place)
            finally:
                sys.path.remove("")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"{place} has no function {attribute!r}")
    return function


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

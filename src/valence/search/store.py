"""A search on disk: one JSON file. Its numbers are written so that they read back to the same bits."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valence.errors import UserError
from valence.objectives import PMPO
from valence.search.draw import Draw, plain
from valence.search.gaussian import Gaussian
from valence.search.over import Watch
from valence.search.space import Box, Space, Unbounded

if TYPE_CHECKING:
    from valence.search.search import PreferenceSearch

VERSION = 1
PLAIN = ("told", "steps", "begun", "population", "reason", "extra")
"""Attributes of a search that JSON holds as they are."""


def save_search(search: PreferenceSearch, path: Path) -> None:
    """Write `path`, through a draft beside it, so that it is never half a file."""
    tree = {
        "version": VERSION,
        "space": _space_to_tree(search.space),
        "objective": asdict(search.objective),
        "options": {
            "covariance": search.covariance, "population": search.first_population, "sigma": search.sigma,
            "restarts": search.restarts, "kl": search.kl, "seed": search.seed,
        },
        "state": {name: getattr(search, name) for name in PLAIN},
        "random": search.random.bit_generator.state,
        "best": None if search.best is None else [search.best[0], search.best[1].tolist()],
        "policy": {
            "mean": search.policy.mean.tolist(), "size": search.policy.size, "shape": search.policy.shape.tolist(),
        },
        "watch": asdict(search.watch),
        "path": search.path.tolist(),
        "draw": {
            "asked": [[np.frombuffer(x).tolist(), z.tolist()] for x, z in search.draw.asked.items()],
            "z": [z.tolist() for z in search.draw.z],
            "said": [[kind, plain(kind, what)] for kind, what in search.draw.said],
        },
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    draft.write_text(json.dumps(tree))
    draft.replace(path)


def load_search(path: Path) -> PreferenceSearch:
    """A search as `save_search` wrote it.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    try:
        tree = json.loads(path.read_text())
        if tree["version"] != VERSION:
            raise UserError(f"{path} was saved by another version of Valence: start without --resume")
        return _search_of(tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the saved search {path} cannot be read ({said}); delete it, or start anew") from error


def _search_of(tree: dict[str, Any]) -> PreferenceSearch:
    from valence.search.search import PreferenceSearch

    search = PreferenceSearch(_space_of(tree["space"]), PMPO(**tree["objective"]), **tree["options"])
    for name in PLAIN:
        setattr(search, name, tree["state"][name])
    search.random.bit_generator.state = tree["random"]
    best, policy, draw = tree["best"], tree["policy"], tree["draw"]
    search.best = None if best is None else (best[0], np.array(best[1]))
    search.policy = Gaussian(np.array(policy["mean"]), policy["size"], np.array(policy["shape"]))
    search.watch = Watch(**tree["watch"])
    search.path = np.array(tree["path"])
    search.draw = Draw(
        {np.array(x, dtype=np.float64).tobytes(): np.array(z) for x, z in draw["asked"]},
        [np.array(z) for z in draw["z"]],
        [(kind, what) for kind, what in draw["said"]],
    )
    return search


def _space_to_tree(space: Space) -> dict[str, Any]:
    names = ("low", "high") if isinstance(space, Box) else ("mean", "scale")
    return {"kind": type(space).__name__} | {name: getattr(space, name).tolist() for name in names}


def _space_of(tree: dict[str, Any]) -> Space:
    kinds: dict[str, type[Box] | type[Unbounded]] = {"Box": Box, "Unbounded": Unbounded}
    return kinds[tree.pop("kind")](**tree)

"""`valence reproduce NAME --out DIR [--smoke | --quick]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import tyro

from valence.cli.parse import parse
from valence.errors import UserError

EXPERIMENTS = {
    "thumbs": "valence.reproduce.thumbs",
    "bandit": "valence.reproduce.bandit",
    "control": "valence.reproduce.control",
    "offline-control": "valence.reproduce.offline_control",
    "summarize": "valence.reproduce.summarize",
    "best-worst": "valence.reproduce.best_worst",
    "pmpo-language": "valence.reproduce.pmpo_language",
    "dro": "valence.reproduce.dro",
    "general-preference": "valence.reproduce.general_preference",
    "image": "valence.reproduce.image",
}


@dataclass(frozen=True)
class Reproduce:
    """Rerun an experiment and print the paper's figures beside ours. Experiments: thumbs, bandit, control,
    offline-control, summarize, best-worst, pmpo-language, dro, general-preference,
    image."""

    name: tyro.conf.Positional[str]
    """Which experiment."""
    out: str = ""
    """Folder to write into; runs/NAME where not given."""
    smoke: bool = False
    """Seconds: only that it works."""
    quick: bool = False
    """A few minutes: one seed."""
    workers: int = 0
    """Processes side by side; 0 takes one a core."""


def run(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse(Reproduce, arguments, prog="valence reproduce")
    if options.name not in EXPERIMENTS:
        raise UserError(f"there is no experiment {options.name!r}; there are {', '.join(EXPERIMENTS)}")
    size = "smoke" if options.smoke else "quick" if options.quick else "full"
    out = Path(options.out or f"runs/{options.name}")
    path = import_module(EXPERIMENTS[options.name]).run(out, size, options.workers or None)
    print(f"written: {path}")

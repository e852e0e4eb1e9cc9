"""Offline control: a policy from episodes that others recorded, with labels given or made from a learned value.

PMPO's BC form (paper, section 5.3): accepted actions are raised, rejected ones lowered, and the likelihood of all
actions stands for the KL to the policy that made the data, which is not available.

Shape legend: see `valence.sources.episodes`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int
from torch import Tensor

from valence.data.episodes import read_episodes
from valence.errors import UserError
from valence.objectives.pmpo import pmpo_beta
from valence.runs.methods import OFFLINE_CONTROL
from valence.runs.options import Count, Fraction, OpenFraction, Options, Positive, Sizes, Whole, check
from valence.runs.run import Log, RunResult, begin, claim, write_settings
from valence.runs.settings import NoOptions, RunConfig, configure, settings_of, to_words
from valence.sources.episodes import Rows, mixture, tabulate, unscale
from valence.training.episodes import make_labels, train_policy
from valence.training.interrupt import NOTHING_SAVED, Interrupted, Signals
from valence.training.progress import TRAINING, Busy, Progress

VALUE_STEPS = 150
"""Regression steps of the value in each round."""
COLUMNS = (*TRAINING, ("transitions/s", "transitions_per_second", "{:,.0f}"))
LOSSES = ("accept", "reject", "clone")


@dataclass(frozen=True)
class OfflineOptions(Options):
    """Which labels and losses are used, and how they are learned from."""

    labels: Literal["auto", "given", "advantage"] = "auto"
    """given with the data (infos/label, +1 or -1), the sign of a learned advantage, or auto: given if there are any."""
    use: tuple[Literal["accept", "reject", "clone"], ...] = LOSSES
    """Losses: on accepted actions, on rejected ones, on all of them."""
    discount: Fraction = 0.98
    """Gamma of the advantage."""
    gae_lambda: Fraction = 0.9
    """Lambda of the advantage estimate."""
    expectile: OpenFraction = 0.7
    """Expectile of the returns that the value is; 0.5 is the mean."""
    steps: Count = 4000
    """Updates of the policy."""
    batch_size: Count = 512
    """Transitions in a batch."""
    lr: Positive = 1e-3
    """Learning rate, falling to 0."""
    hidden: Sizes = (256, 256)
    """Units of each hidden layer."""
    min_scale: Positive = 0.3
    """Least standard deviation, in half action ranges; it limits what a rejection can pay."""
    seed: Whole = 0
    """Random seed; the same seed gives the same bits."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(bool(self.use), "use", self.use, f"one or more of {', '.join(LOSSES)}")
        super().__post_init__()


@dataclass(frozen=True)
class OfflineControlConfig(RunConfig):
    """Make a control policy from episodes on disk, in Minari's format: accepted and rejected actions, and cloning."""

    command: ClassVar[str] = "offline-control"
    required: ClassVar[tuple[str, ...]] = ("episodes", "out")
    usage: ClassVar[str] = "valence offline-control EPISODES --out DIR"

    episodes: tyro.conf.Positional[str] = ""
    """The data set's folder (the one with data/main_data.hdf5)."""
    out: str = "runs/offline-control-policy"
    """Folder to write into."""
    method: str = "pmpo"
    """The method: pmpo."""
    preset: str | None = None
    """There is none for episodes."""
    options: Any = field(default_factory=NoOptions)
    learning: OfflineOptions = field(default_factory=OfflineOptions)


def offline_control(episodes: str | Path, out: str | Path, **options: Any) -> RunResult:
    """Learn from a folder in Minari's format; `options` are the command line's. `details` is as in its results.json.

    Raises:
        UserError: the folder cannot be read, or holds nothing that the options ask for; or `out` holds a run already.
    """
    words = to_words(OfflineControlConfig, {"episodes": episodes, "out": out} | options)
    config = configure(OfflineControlConfig, *words)
    return run_offline_control(config, log=lambda line: None, show=not config.learning.quiet)


def run_offline_control(config: OfflineControlConfig, *, log: Log = print, show: bool = True) -> RunResult:
    """Run what `config` describes; writes `out/policy` and `out/results.json`, whose content `details` holds too.

    Raises:
        UserError: the folder cannot be read, or holds nothing that the options ask for; or `out` holds a run already.
    """
    options, settings = config.learning, settings_of(config)
    begin(1, options.seed)
    found = read_episodes(config.episodes)
    out = claim(Path(config.out), settings, can_resume=False)
    actions = np.concatenate([episode.actions for episode in found])
    low, high = np.minimum(actions.min(0), -1.0), np.maximum(actions.max(0), 1.0)
    table = tabulate(found)
    scaled = (table.action - torch.tensor((high + low) / 2)) / torch.tensor((high - low) / 2)
    table = replace(table, action=scaled.float())
    with Busy("learning the value that makes labels", show=show and not options.quiet):
        sign = make_labels(
            table, options.labels, seed=options.seed, steps=VALUE_STEPS, discount=options.discount,
            gae_lambda=options.gae_lambda, expectile=options.expectile, hidden=options.hidden,
        )  # fmt: skip
    rows = mixture(table, sign, **{loss: loss in options.use for loss in LOSSES})
    alpha, beta = class_weights(rows, sign, config)
    write_settings(out, settings)
    progress = Progress(options.steps, show=show and not options.quiet, columns=COLUMNS)
    try:
        with Signals():
            policy, figures = train_policy(
                rows, alpha=alpha, beta=beta, lr=options.lr, steps=options.steps, seed=options.seed,
                batch_size=options.batch_size, hidden=options.hidden, min_scale=options.min_scale, on_step=progress,
            )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(error.number, NOTHING_SAVED) from None
    finally:
        progress.close()
    unscale(policy, table)
    policy.save(out / "policy", low=low.astype(np.float64), high=high.astype(np.float64))
    details = {
        "episodes": len(found), "transitions": int(table.present.sum()), "accepted": int((sign > 0).sum()),
        "rejected": int((sign < 0).sum()), "alpha": alpha, "beta": beta, "figures": figures,
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(details | {"settings": settings}, indent=1) + "\n")
    log(
        f"{details['episodes']} episodes, {details['transitions']:,} transitions: {details['accepted']:,} accepted, "
        f"{details['rejected']:,} rejected; alpha {alpha:g}, beta {beta:.3g}\n"
        f"written: {out} (valence.PolicyRunner.load({str(out)!r}).act(observation) acts)"
    )
    return RunResult(out, config.method, options.steps, None, after=figures, details=details)


def class_weights(rows: Rows, sign: Int[Tensor, "E S"], config: OfflineControlConfig) -> tuple[float, float]:
    """alpha and beta: what was asked for, or what the labels that are there allow.

    Raises:
        UserError: rejections without cloning: nothing would hold the policy.
    """
    objective = OFFLINE_CONTROL[config.method].make(config.options)
    accepted, rejected = rows.fractions()
    if rejected and "clone" not in config.learning.use:
        raise UserError("rejections alone push the policy away without end: use clone too (`use` reject clone)")
    alpha = objective.accepted_weight
    if not accepted or not rejected:
        alpha = 1.0 if accepted or not rejected else 0.0
    # The rejected share is known from all labels, also where the accepted ones are not used.
    counts = {"accepted": float((sign > 0).sum()), "rejected": float((sign < 0).sum())}
    bound = pmpo_beta(alpha=alpha, **counts) if rejected else 1.0
    return alpha, bound if objective.beta == "auto" else objective.beta

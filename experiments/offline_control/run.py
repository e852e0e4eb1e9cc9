"""What rejections, acceptances and cloning are worth on offline episodes.

PMPO paper, section 5.3 and Table 1, at 1:100 and from states instead of images: 1,400 pick-and-place episodes of a
learner that improves (see `make_data`). The first 400 are mostly bad, and are labelled by the sign of a learned
advantage. Five mixtures of the same three losses are trained; each policy acts by its mean action in Meta-World.

Every mixture is tuned over three settings on a separate seed. With rejections, beta is a multiple of its smallest
bounded value on the labels at hand, (1 - alpha) / rho (rho is their rejected share; it differs from seed to seed). The
chosen settings are then run again with the labels of every tenth labelled episode only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import experiment as common
from experiments.common.experiment import TUNING_SEED, Experiment, Row, key
from experiments.common.results import by_name, print_table
from experiments.offline_control.report import average, check_claims, plot
from experiments.offline_control.simulator import HOW, PickPlace, interpreter
from experiments.offline_control.train import Mixture, evaluate, fit_value, make_labels, thin, train_policy

EVALUATION_SEED = 1_000_000
"""Seed of the first evaluation episode for seed 0; no episode of the data has such a seed."""
LEARNING_RATES = (1e-3, 3e-4, 3e-3)
CLONING = (0.3, 0.03, 0.003)
"""Weights of cloning beside acceptances only, where nothing needs a bound."""
OVER_BOUND = (1.0, 1.2, 1.8)
"""Weights of cloning beside rejections, divided by its bound."""
SCARCE = 10
"""In the second part every so many-th labelled episode keeps its labels."""


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is.

    Args:
        early, late: labelled and unlabelled episodes of the data.
        steps, value_steps: updates of a policy, and of the value function in each of its rounds.
        episodes: evaluation episodes per policy.
        scarce: seeds of the second part, with a tenth of the labels.
    """

    early: int = 400
    late: int = 1000
    steps: int
    value_steps: int
    episodes: int
    scarce: tuple[int, ...] = ()


SIZES = {
    "smoke": Size(early=4, late=10, steps=10, value_steps=2, episodes=1),
    "quick": Size(steps=1500, value_steps=50, episodes=20),
    "full": Size(seeds=(0, 1, 2, 3, 4), tune=True, steps=4000, value_steps=100, episodes=100, scarce=(0, 1, 2)),
}


def grids() -> dict[str, tuple[Mixture, ...]]:
    """Three settings of each mixture; the first is used where nothing is tuned."""
    clone, accept = Mixture("BC", clone=True), Mixture("Accept", accept=True)
    both = Mixture("Accept+BC", accept=True, clone=True)
    reject = Mixture("Reject+BC", reject=True, clone=True, alpha=0.0)
    everything = Mixture("Accept+Reject+BC", accept=True, reject=True, clone=True, alpha=0.5)
    return {
        "BC": tuple(replace(clone, lr=lr) for lr in LEARNING_RATES),
        "Accept+BC": tuple(replace(both, beta=beta) for beta in CLONING),
        "Accept": tuple(replace(accept, lr=lr) for lr in LEARNING_RATES),
        "Reject+BC": tuple(replace(reject, over_bound=over) for over in OVER_BOUND),
        "Accept+Reject+BC": tuple(replace(everything, over_bound=over) for over in OVER_BOUND),
    }


@cache
def load(size: Size) -> Any:
    """The data as a table; a small size takes some of the first 400 episodes and some of the others."""
    from valence.data.episodes import read_episodes
    from valence.sources.episodes import tabulate

    episodes = read_episodes(Path(str(files("valence") / "assets" / "pick_place")))
    return tabulate([*episodes[: size.early], *episodes[Size.early :][: size.late]])


def label_seed(setting: common.Setting, size: Size, folder: Path) -> Row:
    """Fit V on all episodes and label the early ones; the labels `[E, S]` are written to `folder`."""
    table = load(size)
    sign = make_labels(table, fit_value(table, seed=setting.seed, steps=size.value_steps), size.early)
    labels = sign.numpy().astype(np.int8)
    np.save(folder / f"{key(setting, size)}.npy", labels)
    early = labels[: size.early]
    return {"accepted_share": float((early > 0).sum() / (early != 0).sum())}


def labels_of(seed: int) -> common.Setting:
    """The setting that makes the labels of a seed."""
    return common.Setting("labels", seed)


def run_setting(setting: Mixture, size: Size, labels: Path, evaluates: bool) -> Row:
    """Train one mixture, and evaluate it where the simulator is there.

    Args:
        labels: the folder that `label_seed` wrote to.
    """
    import torch

    table = load(size)
    stored = np.load(labels / f"{key(labels_of(setting.seed), size)}.npy")
    sign = thin(torch.from_numpy(stored).long(), setting.every)
    used = setting.on(sign)
    policy, figures = train_policy(table, sign, used, seed=setting.seed, steps=size.steps)
    row = {"setting": asdict(setting), "beta": used.beta, "every": setting.every, "training": figures}
    if not evaluates:
        return row
    first = EVALUATION_SEED + 1000 * setting.seed
    with PickPlace() as task:
        return row | evaluate(policy, table, task, range(first, first + size.episodes))


def log(row: Row) -> str:
    """A line about one run."""
    setting = {"alpha": row["setting"]["alpha"], "beta": round(row["beta"], 3), "lr": row["setting"]["lr"]}
    figures = f"reward {row['reward']:5.1f}, success {row['success']:.2f}" if "reward" in row else "not evaluated"
    return f"{row['name']:17} seed {row['seed']:<4} {figures}  {setting}"


def describe(size: Size, labelled: Sequence[Row]) -> dict[str, float]:
    """Mean rewards of the data's episodes, and the share of early transitions that are accepted."""
    reward = load(size).reward.sum(1)
    return {
        "early_reward": float(reward[: size.early].mean()), "late_reward": float(reward[size.early :].mean()),
        "best_tenth_reward": float(reward[reward >= reward.quantile(0.9)].mean()),
        "accepted_share": float(np.mean([row["accepted_share"] for row in labelled if row["seed"] in size.seeds])),
    }  # fmt: skip


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a page and a picture."""
    size, labels, evaluates = experiment.size, experiment.out / "labels", interpreter() is not None
    labels.mkdir(parents=True, exist_ok=True)
    if not evaluates:
        print(f"Meta-World is not installed, so policies are trained but not evaluated; to evaluate: {HOW}")
    seeds = [TUNING_SEED, *size.seeds] if size.tune else list(size.seeds)
    labelled = experiment.run_all(label_seed, [labels_of(seed) for seed in seeds], size, labels, folder="labels")
    data = describe(size, labelled)
    print("data:", ", ".join(f"{name} {figure:.2f}" for name, figure in data.items()))

    def run_all(settings: Sequence[Mixture]) -> list[Row]:
        return experiment.run_all(run_setting, settings, size, labels, evaluates, log=log)

    chosen, tuned = {name: settings[0] for name, settings in grids().items()}, []
    if size.tune and evaluates:
        print("tuning, three settings per mixture, on a separate seed:")
        tuned = run_all([replace(one, seed=TUNING_SEED) for settings in grids().values() for one in settings])
        best = {name: max(rows, key=lambda row: row["reward"]) for name, rows in by_name(tuned).items()}
        chosen = {name: Mixture(**row["setting"]) for name, row in best.items()}
    print("runs:")
    rows = run_all([replace(one, seed=seed) for seed in size.seeds for one in chosen.values()])
    few: list[Row] = []
    if size.scarce and evaluates:
        print(f"the same settings with the labels of every {SCARCE}th labelled episode only:")
        # Cloning reads no labels, so its rows are the same.
        few = [row for row in rows if row["name"] == "BC" and row["seed"] in size.scarce]
        scarce = [replace(one, every=SCARCE) for name, one in chosen.items() if name != "BC"]
        few += run_all([replace(one, seed=seed) for seed in size.scarce for one in scarce])
    return report(experiment, rows, few, {"data": data, "tuning": tuned, "tuning_seed": TUNING_SEED})


def report(experiment: Experiment[Size], rows: Sequence[Row], few: Sequence[Row], more: dict[str, Any]) -> Path:
    """Print the table and write everything down; `few` are the rows with few labels."""
    size, picture = experiment.size, "offline-control.png"
    lines, claims = average(rows), check_claims(rows)
    if few:
        labelled = size.early // SCARCE
        lines = [{"labelled": size.early} | line for line in lines]
        lines += [{"labelled": labelled} | line for line in average(few)]
        claims += [replace(claim, claim=f"{claim.claim}, {labelled} labelled") for claim in check_claims(few)]
    print_table("Reward of an episode (at most 100), means over seeds, 95% intervals", lines)
    if claims:
        plot(average(rows), average(few) if few else [], experiment.out / picture)
    else:
        print("too few episodes were evaluated to judge the claims")
    return experiment.write(
        lines, claims, [picture] if claims else [], per_seed=rows, per_seed_few_labels=few, size=asdict(size), **more
    )  # fmt: skip

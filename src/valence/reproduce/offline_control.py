"""`valence reproduce offline-control`: what rejections, acceptances and cloning are worth on offline episodes.

PMPO paper, section 5.3 and Table 1, at 1:100 and from states instead of images: 1,400 pick-and-place episodes of a
learner getting better (see `scripts/make_pick_place.py`), of which the first 400 are labelled by the sign of a learned
advantage and mostly bad. Five mixtures of the same three losses; each policy acts by its mean in Meta-World.

Every mixture is tuned over three settings on a seed of its own. With rejections, beta is a multiple of its smallest
bounded value on the labels at hand, (1 - alpha) / rho (rho their rejected share; they differ from seed to seed). The
settings so chosen are then run once more where only every tenth of the labelled episodes is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from valence.reproduce.offline_control_claims import average, check_claims, plot
from valence.reproduce.offline_control_env import HOW, PickPlace, interpreter
from valence.reproduce.offline_control_train import (
    Mixture,
    evaluate,
    fit_value,
    make_labels,
    thin,
    train_policy,
)
from valence.reproduce.results import print_claims, print_table, write_page, write_results

TUNE_SEED = 100
EVALUATION_SEED = 1_000_000
"""The first episode's of seed 0; no episode of the data has such a seed."""
LEARNING_RATES = (1e-3, 3e-4, 3e-3)
CLONING = (0.3, 0.03, 0.003)
"""Weight of cloning beside acceptances alone, where no bound asks for one."""
OVER_BOUND = (1.0, 1.2, 1.8)
"""Weight of cloning beside rejections, over its bound."""
SCARCE = 10
"""Every so manyth labelled episode keeps its labels in the second part."""


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        early, late: episodes of the data, labelled and not.
        steps, value_steps: updates of a policy, and of the value function in each of its rounds.
        episodes: evaluated for each policy.
        scarce: seeds of the second part, with a tenth of the labels.
    """

    seeds: tuple[int, ...]
    early: int
    late: int
    steps: int
    value_steps: int
    episodes: int
    tune: bool
    scarce: tuple[int, ...] = ()


SIZES = {
    "smoke": Size((0,), 4, 10, 10, 2, 1, False),
    "quick": Size((0,), 400, 1000, 1500, 50, 20, False),
    "full": Size((0, 1, 2, 3, 4), 400, 1000, 4000, 100, 100, True, (0, 1, 2)),
}


def grids() -> dict[str, tuple[Mixture, ...]]:
    """Three settings for each mixture; the first is taken where nothing is tuned."""
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
    """The kept data as a table; a small size takes some of the first 400 episodes and some of the others."""
    from valence.data.episodes import read_episodes
    from valence.sources.episodes import tabulate

    episodes = read_episodes(Path(__file__).parents[1] / "assets" / "pick_place")
    return tabulate([*episodes[: size.early], *episodes[SIZES["full"].early :][: size.late]])


def label(seed: int, size: Size, folder: str) -> str:
    """Fit V on all episodes and label the early ones, unless that is done; the path of the labels `[E, S]`."""
    import torch

    path = Path(folder) / f"labels-{seed}-{size.early}-{size.late}-{size.value_steps}.npy"
    if not path.exists():
        torch.set_num_threads(1)
        table = load(size)
        sign = make_labels(table, fit_value(table, seed=seed, steps=size.value_steps), size.early)
        np.save(path, sign.numpy().astype(np.int8))
    return str(path)


def _digest(setting: Mixture, size: Size, every: int) -> str:
    """Of what a row depends on, its seed apart."""
    what = [asdict(setting), asdict(replace(size, seeds=(), tune=False, scarce=())), every]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def run_setting(setting: Mixture, seed: int, size: Size, labels: str, every: int = 1) -> dict[str, Any]:
    """One row of figures, from an earlier start of the same run where it is there."""
    path = Path(labels).with_name(f"{setting.name}-{seed}-{_digest(setting, size, every)}.json")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    row = _train_and_evaluate(setting, seed, size, labels, every)
    if "reward" in row:
        path.write_text(json.dumps(row), encoding="utf-8")
    return row


def _train_and_evaluate(setting: Mixture, seed: int, size: Size, labels: str, every: int) -> dict[str, Any]:
    """Runs in a process of its own, on one thread."""
    import torch

    torch.set_num_threads(1)
    table = load(size)
    sign = thin(torch.from_numpy(np.load(labels)).long(), every)
    used = setting.on(sign)
    policy, figures = train_policy(table, sign, used, seed=seed, steps=size.steps)
    row = {
        "name": setting.name, "seed": seed, "setting": asdict(setting), "beta": used.beta, "every": every,
        "training": figures,
    }  # fmt: skip
    if interpreter() is None:
        return row
    first = EVALUATION_SEED + 1000 * seed
    with PickPlace() as task:
        return row | evaluate(policy, table, task, range(first, first + size.episodes))


def _spread(function: Any, tasks: Sequence[Sequence[Any]], workers: int) -> list[Any]:
    """`function(*task)` of every task, in processes side by side; rows are printed when they are there."""
    columns = list(zip(*tasks, strict=True))
    if workers == 1:
        return [_said(row) for row in map(function, *columns)]
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        return [_said(row) for row in pool.map(function, *columns)]


def _said(row: Any) -> Any:
    if isinstance(row, dict):
        setting = {"alpha": row["setting"]["alpha"], "beta": round(row["beta"], 3), "lr": row["setting"]["lr"]}
        figures = f"reward {row['reward']:5.1f}, success {row['success']:.2f}" if "reward" in row else "not evaluated"
        print(f"  {row['name']:17} seed {row['seed']:<4} {figures}  {setting}", flush=True)
    return row


def describe(size: Size, labels: Sequence[str]) -> dict[str, float]:
    """What the data are: mean rewards of episodes, and the share of early transitions that is accepted."""
    table = load(size)
    reward = table.reward.sum(1)
    signs = [np.load(path)[: size.early] for path in labels]
    return {
        "early_reward": float(reward[: size.early].mean()), "late_reward": float(reward[size.early :].mean()),
        "best_tenth_reward": float(reward[reward >= reward.quantile(0.9)].mean()),
        "accepted_share": float(np.mean([(sign > 0).sum() / (sign != 0).sum() for sign in signs])),
    }  # fmt: skip


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes `out/results.json`, a page and a picture.

    What an interrupted run has finished lies in `out/parts`, and is not done again.
    """
    size, folder = SIZES[size_name], out / "parts"
    workers = 1 if size_name == "smoke" else workers or os.cpu_count() or 1
    folder.mkdir(parents=True, exist_ok=True)
    if interpreter() is None:
        print(f"Meta-World is not here, so policies are trained but not evaluated; to evaluate: {HOW}")
    seeds = [TUNE_SEED, *size.seeds] if size.tune else list(size.seeds)
    paths = dict(zip(seeds, _spread(label, [(seed, size, str(folder)) for seed in seeds], workers), strict=True))
    data = describe(size, [paths[seed] for seed in size.seeds])
    print("data:", ", ".join(f"{name} {figure:.2f}" for name, figure in data.items()))
    grid = grids()
    chosen, tuned = {name: settings[0] for name, settings in grid.items()}, []
    if size.tune and interpreter() is not None:
        print("tuning, three settings a mixture, on a seed of its own:")
        candidates = [setting for settings in grid.values() for setting in settings]
        tuned = _spread(
            run_setting, [(setting, TUNE_SEED, size, paths[TUNE_SEED]) for setting in candidates], workers
        )  # fmt: skip
        for name in grid:
            best = max((row for row in tuned if row["name"] == name), key=lambda row: row["reward"])
            chosen[name] = Mixture(**best["setting"])
    print("runs:")
    tasks = [(chosen[name], seed, size, paths[seed]) for seed in size.seeds for name in grid]
    rows = _spread(run_setting, tasks, workers)
    few: list[dict[str, Any]] = []
    if size.scarce and interpreter() is not None:
        print(f"the same settings, with the labels of every {SCARCE}th labelled episode alone:")
        # Cloning knows no labels: its rows are the same.
        labelled = [name for name in grid if name != "BC"]
        tasks = [(chosen[name], seed, size, paths[seed], SCARCE) for seed in size.scarce for name in labelled]
        few = [row for row in rows if row["name"] == "BC" and row["seed"] in size.scarce]
        few += _spread(run_setting, tasks, workers)
    return report(out, rows, few, size, {"data": data, "tuning": tuned, "tuning_seed": TUNE_SEED})


def report(
    out: Path, rows: Sequence[Mapping[str, Any]], few: Sequence[Mapping[str, Any]], size: Size, more: Mapping[str, Any]
) -> Path:
    """Print the table and the claims, and write everything down; `few` are the rows with few labels."""
    lines = average(rows)
    claims = check_claims(rows)
    if few:
        labelled = size.early // SCARCE
        lines = [{"labelled": size.early} | line for line in lines]
        lines += [{"labelled": labelled} | line for line in average(few)]
        claims += [replace(claim, claim=f"{claim.claim}, {labelled} labelled") for claim in check_claims(few)]
    print_table("Reward of an episode (at most 100), means over seeds, 95% intervals", lines)
    if not claims:
        print("too few evaluated episodes to judge the claims on")
    else:
        print_claims(claims)
        plot(average(rows), average(few) if few else [], out / "offline-control.png")
    extra = {"per_seed": list(rows), "per_seed_few_labels": list(few), "size": asdict(size), **more}
    path = write_results(out, "offline-control", lines, claims, size.seeds, **extra)
    if claims:
        write_page(out / "README.md", "Offline control: what rejections are worth", PAGE, "offline-control.png")
    return path


PAGE = """\
1,400 episodes of Meta-World's pick-and-place (100 steps, 14 numbers of state), made by its scripted policy and by four
systematic failures of it, with noise, as a learner getting better would: the first 400 are labelled, transition by
transition, by the sign of an advantage that a value function learned on all episodes gives. BC is on all of them.
`reward` is the sum over an episode of Meta-World's reward over 10, so at most 100; `low` and `high` are a 95% bootstrap
interval over seeds and episodes; `success` is the share of episodes that reached the goal. A seed has its own value
function, labels, network and evaluation episodes; the data are the same. Every mixture was tuned over three settings
on a seed that is not reported: BC and Accept over the learning rate, Accept+BC over β (0.3, 0.03, 0.003), those with
rejections over β from its bound (1 − α)/ρ to 1.8 times it, ρ being the rejected share of that seed's own labels.
`tuning` in `results.json` has every setting. In the rows with 40 labelled, the same settings saw the labels of every
tenth of the 400 episodes alone. `paper` is Table 1: stacking from images, another reward scale; only orders compare.

How to read it. Cloning everything fails because most transitions at the puck with an open gripper keep it open, and
the mean of the actions is what acts. Accept+BC clones as little as tuning lets it. Rejections repair cloning
with 400 labelled, and do not beat acceptances, which from 14 numbers of state and for one task already say what
to do. That acceptances are merely not scarce enough here does not explain it: in the rows with 40 labelled it is the
rejections that fail. We take it (and have not tested it) that few labels are learned by heart, while β's bound holds
for labelled episodes that stand for all. The labels are noisy: an advantage estimated from one trajectory."""

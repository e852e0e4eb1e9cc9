"""`valence reproduce offline-control`: what rejections, acceptances and cloning are worth on offline episodes.

PMPO paper, section 5.3 and Table 1, at 1:100 and from states instead of images: 1,400 pick-and-place episodes of a
learner getting better (see `scripts/make_pick_place.py`), of which the first 400 are labelled by the sign of a learned
advantage and mostly bad. Five mixtures of the same three losses; each policy acts by its mean in Meta-World.

Every mixture is tuned over three settings on a seed of its own. The grid of beta spans two bounds: (1 - alpha) / rho,
which holds where the labelled episodes are drawn as all are (rho their rejected share), and that times all episodes
over labelled ones, which holds however they are drawn.
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
from valence.reproduce.offline_control_train import Mixture, evaluate, fit_value, make_labels, train_policy
from valence.reproduce.results import print_claims, print_table, write_page, write_results

TUNE_SEED = 100
EVALUATION_SEED = 1_000_000
"""The first episode's of seed 0; no episode of the data has such a seed."""
LEARNING_RATES = (1e-3, 3e-4, 3e-3)
CLONING = (0.3, 0.03, 3.0)
"""Weight of cloning beside acceptances alone, where no bound asks for one."""


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        early, late: episodes of the data, labelled and not.
        steps, value_steps: updates of a policy, and of the value function in each of its rounds.
        episodes: evaluated for each policy.
    """

    seeds: tuple[int, ...]
    early: int
    late: int
    steps: int
    value_steps: int
    episodes: int
    tune: bool


SIZES = {
    "smoke": Size((0,), 4, 10, 10, 2, 1, False),
    "quick": Size((0,), 400, 1000, 1500, 50, 20, False),
    "full": Size((0, 1, 2, 3, 4), 400, 1000, 4000, 100, 100, True),
}


def grids(rejected: float, size: Size) -> dict[str, tuple[Mixture, ...]]:
    """Three settings for each mixture; the first is taken where nothing is tuned.

    Args:
        rejected: rho, the rejected share of the labelled transitions.
    """
    spread = (size.early + size.late) / size.early
    bounds = tuple(spread**power / rejected for power in (0.0, 0.5, 1.0))
    clone, accept = Mixture("BC", clone=True), Mixture("Accept", accept=True)
    both = Mixture("Accept+BC", accept=True, clone=True)
    reject = Mixture("Reject+BC", reject=True, clone=True, alpha=0.0)
    everything = Mixture("Accept+Reject+BC", accept=True, reject=True, clone=True, alpha=0.5)
    return {
        "BC": tuple(replace(clone, lr=lr) for lr in LEARNING_RATES),
        "Accept+BC": tuple(replace(both, beta=beta) for beta in CLONING),
        "Accept": tuple(replace(accept, lr=lr) for lr in LEARNING_RATES),
        "Reject+BC": tuple(replace(reject, beta=bound) for bound in bounds),
        "Accept+Reject+BC": tuple(replace(everything, beta=0.5 * bound) for bound in bounds),
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


def _digest(setting: Mixture, size: Size) -> str:
    """Of what a row depends on, its seed apart."""
    what = [asdict(setting), asdict(replace(size, seeds=(), tune=False))]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def run_setting(setting: Mixture, seed: int, size: Size, labels: str) -> dict[str, Any]:
    """One row of figures, from an earlier start of the same run where it is there."""
    path = Path(labels).with_name(f"{setting.name}-{seed}-{_digest(setting, size)}.json")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    row = _train_and_evaluate(setting, seed, size, labels)
    if "reward" in row:
        path.write_text(json.dumps(row), encoding="utf-8")
    return row


def _train_and_evaluate(setting: Mixture, seed: int, size: Size, labels: str) -> dict[str, Any]:
    """Runs in a process of its own, on one thread."""
    import torch

    torch.set_num_threads(1)
    table = load(size)
    sign = torch.from_numpy(np.load(labels)).long()
    policy, figures = train_policy(table, sign, setting, seed=seed, steps=size.steps)
    row = {"name": setting.name, "seed": seed, "setting": asdict(setting), "training": figures}
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
        setting = {name: row["setting"][name] for name in ("alpha", "beta", "lr")}
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
    first = np.load(paths[seeds[0]])
    grid = grids(float((first < 0).sum() / (first != 0).sum()), size)
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
    return report(out, rows, size, {"data": data, "tuning": tuned, "tuning_seed": TUNE_SEED})


def report(out: Path, rows: Sequence[Mapping[str, Any]], size: Size, more: Mapping[str, Any]) -> Path:
    """Print the table and the claims, and write everything down."""
    lines = average(rows)
    claims = check_claims(rows)
    print_table("Reward of an episode (at most 100), means over seeds, 95% intervals", lines)
    if not claims:
        print("too few evaluated episodes to judge the claims on")
    else:
        print_claims(claims)
        plot(lines, out / "offline-control.png")
    extra = {"per_seed": list(rows), "size": asdict(size), **more}
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
on a seed that is not reported: BC and Accept over the learning rate, Accept+BC over β, Reject+BC over β from 1/ρ to
that times 1,400/400 (ρ: the rejected share of the labelled), all three over half of that (α 0.5). `paper` is Table 1:
stacking from images, another reward scale; only orders compare.

Where it differs from the paper: acceptances are not scarce here. From 14 numbers of state and for one task, the
accepted transitions of 400 episodes already say what to do, so that Accept alone does as well as anything, and
Accept+BC is tuned to the least cloning of its grid. Cloning everything fails because most transitions at the puck with
an open gripper keep it open. Rejections repair that only near the lower bound of β; `tuning` in `results.json` has
every setting. The labels are noisy: an advantage estimated from one trajectory."""

"""Standard functions minimised from preferences (PMPO paper, section 5.1, Figure 1), and the package's own search.

Part A is the paper's protocol. Part B is `valence.PreferenceSearch` with its one setting, which was chosen on seeds
from 100 on and the functions of `TUNED`, beside pycma and random search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.bandit.methods import LR, SAMPLES, SIGMA, TARGET, Problem, Setting, run_setting
from experiments.bandit.report import (
    LOTS,
    PAPER,
    PRODUCT,
    PROTOCOL,
    TUNED,
    UNSEEN,
    check_claims,
    number,
    plot,
    product_rows,
    protocol_rows,
)  # fmt: skip
from experiments.common import experiment as common
from experiments.common.experiment import Experiment
from experiments.common.results import by_name, print_table


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is.

    Args:
        steps: optimizer steps of the paper's protocol.
        per_dim: evaluations of a search, per dimension.
        paper, product: the functions of parts A and B.
    """

    steps: int
    per_dim: int
    paper: tuple[str, ...] = PAPER
    product: tuple[Problem, ...] = TUNED


SIZES = {
    "smoke": Size(steps=20, per_dim=150, paper=("sphere",), product=(Problem("sphere", 2),)),
    "quick": Size(seeds=(0, 1), steps=400, per_dim=3000),
    "full": Size(seeds=tuple(range(10)), steps=3000, per_dim=6000, product=(*TUNED, *UNSEEN)),
}


def list_settings(size: Size) -> list[Setting]:
    """All runs. A search in two dimensions gets 5/3 of the evaluations per dimension: in full 20,000 for two, 60,000
    for ten."""
    settings = []
    for problem in size.product:
        limit = size.per_dim * problem.dim * 5 // 3 if problem.dim == 2 else size.per_dim * problem.dim
        methods = (*PRODUCT, LOTS) if problem.name == "sphere" else PRODUCT
        settings += [
            Setting(name, seed, part="product", problem=problem, limit=limit)
            for name in methods for seed in size.seeds
        ]  # fmt: skip
    return settings + [
        Setting(name, seed, part="paper", problem=Problem(function, 2), limit=size.steps)
        for function in size.paper for name in PROTOCOL for seed in size.seeds
    ]  # fmt: skip


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a picture and a page."""
    runs = experiment.run_all(run_setting, list_settings(experiment.size))
    rows = [*protocol_rows(runs), *product_rows(runs)]
    claims = check_claims(rows)
    rows = [{name: value for name, value in row.items() if name != "left"} for row in rows]
    print_table("The paper's protocol, medians over seeds", [row for row in rows if row["part"] == "A"])
    print_table(f"PreferenceSearch: evaluations to {TARGET:g}", [row for row in rows if row["part"] != "A"])
    plot(runs, rows, experiment.out / "bandit.png")
    searches = by_name(
        (one for one in runs if one["part"] == "product"), lambda one: f"{one['function']} {one['dim']}D, {one['name']}"
    )
    counts = {name: [number(one["evaluations"]) for one in group] for name, group in searches.items()}
    return experiment.write(
        rows, claims, ["bandit.png"], page={"samples": SAMPLES, "lr": LR, "target": TARGET, "sigma": SIGMA},
        evaluations_per_seed=counts, steps=experiment.size.steps, lr=LR,
    )  # fmt: skip

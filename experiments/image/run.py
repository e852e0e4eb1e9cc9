"""REBEL against PPO on an image policy, by reward queries, with PMPO beside them.

REBEL paper, section 5.3 and Figure 3, at the size of this machine: the small consistency model of handwritten digits
that the package carries in place of Dreamshaper's, and a composite reward (a digit classifier and small JPEG files) in
place of the aesthetic predictor. Every run is `valence.improve_images` itself.

Protocol. Each method's learning rate is the best of the same four, on a seed that is not reported; then three seeds are
run. The comparison is between interquartile means of the reward of fresh images, with 95% bootstrap intervals
stratified by seed; a classifier that nothing learns from checks that the digits can still be read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import SILENT, TUNING_SEED, Experiment, Row, key
from experiments.common.results import by_name, print_table
from experiments.common.statistics import iqm
from experiments.image.report import (
    BATCH,
    ENOUGH,
    RATES,
    SAMPLES,
    accuracy,
    check_claims,
    plot_curves,
    plot_grids,
    rewards,
    table,
    verdict,
)
from valence.evaluation.statistics import mean_interval

METHODS: dict[str, dict[str, Any]] = {
    "REBEL": {"method": "rebel", "preset": "paper", "num_epochs": 1},
    "REBEL, two epochs": {"method": "rebel", "preset": "paper", "num_epochs": 2},
    "PPO": {"method": "ppo", "preset": "paper", "num_epochs": 2},
    "PMPO-AR": {"method": "pmpo", "preset": "ar", "num_epochs": 1},
}
"""REBEL's and PPO's settings are the paper's for images, except the learning rate; PMPO has its paper's alpha and beta.
PPO learns twice from each batch, and REBEL, in the paper's table, once; with two epochs REBEL has as many updates."""
UNTUNED = RATES[2]


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is.

    Args:
        batches: batches that a run collects.
        every: batches between evaluations.
        images: images per evaluation.
        methods: names in `METHODS`.
        reward: name of the reward; "default" is the composite.
    """

    batches: int
    every: int
    images: int
    methods: tuple[str, ...] = tuple(METHODS)
    reward: str = "default"


@dataclass(frozen=True)
class Setting(common.Setting):
    """One run.

    Args:
        options: options of `valence.improve_images`.
        every: batches between evaluations.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1


SIZES = {
    "smoke": Size(batches=1, every=1, images=10, methods=("REBEL",), reward="jpeg-small"),
    "quick": Size(batches=10, every=5, images=40, methods=("REBEL", "PPO")),
    "full": Size(seeds=(0, 1, 2), tune=True, batches=40, every=5, images=60),
}


def make_setting(name: str, seed: int, lr: float, every: int) -> Setting:
    """A run of a method at a learning rate."""
    return Setting(name, seed, METHODS[name] | {"lr": lr}, every)


def run_setting(setting: Setting, size: Size, folder: Path) -> Row:
    """One training; the images of its first and last evaluation are copied to `folder`, see `grid`."""
    from valence import improve_images

    # Some methods take two updates from each batch; `batches` and `every` count batches.
    per_batch = setting.options["num_epochs"]
    began = time.perf_counter()
    shared = SILENT | {
        "pipeline": "small-digits", "reward": size.reward, "seed": setting.seed, "batch_size": BATCH,
        "num_samples": SAMPLES, "max_steps": size.batches * per_batch, "eval_every": setting.every * per_batch,
        "eval_samples": size.images,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        result = improve_images(out=Path(name) / "run", **(shared | dict(setting.options)))
        points = json.loads((result.out / "evaluations.json").read_text())
        images = sorted((result.out / "grids").iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        for place, part in ((0, "before"), (-1, "after")):
            shutil.copy(images[place], grid(setting, size, folder, part))
    return {
        "setting": asdict(setting), "seconds": time.perf_counter() - began,
        "evaluations": [
            {"queries": BATCH * SAMPLES * point["step"] // per_batch, "reward": point["proxy"],
             "judge": point["gold"], "kl": sum(point["kl"]) / len(point["kl"])}
            for point in points
        ],
    }  # fmt: skip


def grid(setting: Setting, size: Size, folder: Path, part: str) -> Path:
    """The picture of a run's images "before" or "after" training."""
    return folder / f"{key(setting, size)}-{part}.png"


def best_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate with the highest reward (IQM over images at the end) among those that keep the digits, by the
    lower end of the judge's 95% interval; where none does, the rate that keeps most digits."""

    def lower_end(row: Mapping[str, Any]) -> float:
        average, half = mean_interval(row["evaluations"][-1]["judge"])
        return average - half

    kept = [row for row in rows if lower_end(row) >= ENOUGH]
    if kept:
        return max(kept, key=lambda row: iqm(rewards(row["evaluations"][-1])))["setting"]["options"]["lr"]
    return max(rows, key=lambda row: accuracy(row["evaluations"][-1]))["setting"]["options"]["lr"]


def without_images(row: Row) -> Row:
    """A run with means in place of the rewards of single images."""
    points = [
        {"queries": point["queries"], "reward": sum(rewards(point)) / len(rewards(point)), "judge": accuracy(point),
         "kl": point["kl"]}
        for point in row["evaluations"]
    ]  # fmt: skip
    return row | {"evaluations": points}


def log(row: Row) -> str:
    """A line about one run."""
    points = without_images(row)["evaluations"]
    first, last = points[0], points[-1]
    return (
        f"{row['name']:8} lr {row['setting']['options']['lr']:g} seed {row['seed']}  reward {first['reward']:.2f} -> "
        f"{last['reward']:.2f}, judge {100 * first['judge']:.0f}% -> {100 * last['judge']:.0f}%, KL(π‖ref) "
        f"{last['kl']:.1f}, {last['queries']:,} queries, {row['seconds']:.0f} s"
    )


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a page and pictures."""
    size, out, folder = experiment.size, experiment.out, experiment.out / "runs"
    tuned: list[Row] = []
    chosen = dict.fromkeys(size.methods, UNTUNED)
    if size.tune:
        print("tuning, four learning rates per method, on a separate seed:")
        settings = [make_setting(name, TUNING_SEED, lr, size.batches) for name in size.methods for lr in RATES]
        tuned = experiment.run_all(run_setting, settings, size, folder, log=log)
        chosen = {name: best_rate(rows) for name, rows in by_name(tuned).items()}
    print("runs:")
    settings = [make_setting(name, seed, lr, size.every) for seed in size.seeds for name, lr in chosen.items()]
    rows = experiment.run_all(run_setting, settings, size, folder, log=log)
    found = by_name(rows)
    lines, claims = table(found), check_claims(found)
    print_table("Composite reward of fresh images: interquartile mean and 95% interval over seeds", lines)
    text = verdict(claims)
    print(text)
    plot_curves(found, out / "image.png")
    grids = {"before": grid(settings[0], size, folder, "before")}
    grids |= {one.name: grid(one, size, folder, "after") for one in settings if one.seed == size.seeds[0]}
    plot_grids(grids, out / "grids.png")
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return experiment.write(
        lines, claims, ["image.png", "grids.png"], page={"batch": BATCH, "samples": SAMPLES, "rates": rates},
        note=text, verdict=text, learning_rates=chosen, rates_tried=RATES if tuned else [], tuning_seed=TUNING_SEED,
        tuning=[without_images(row) for row in tuned], runs=[without_images(row) for row in rows],
    )  # fmt: skip

"""One run of `valence reproduce image`: `improve_images` on the small digits, and what its looks saw."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valence.evaluation.statistics import iqm, mean_interval
from valence.reproduce.pool import Row, kept_row

PIPELINE = "small-digits"
BATCH, SAMPLES = 8, 4
"""Prompts a batch and images of each: 32 reward queries."""
QUERIES = BATCH * SAMPLES
ENOUGH = 0.9
"""Share of images that the judge must still name right."""
METHODS: dict[str, dict[str, Any]] = {
    "REBEL": {"method": "rebel", "preset": "paper"},
    "REBEL, two epochs": {"method": "rebel", "preset": "paper", "inner_epochs": 2},
    "PPO": {"method": "ppo", "preset": "paper"},
    "PMPO-AR": {"method": "pmpo", "preset": "ar"},
}
"""REBEL's and PPO's settings are the paper's for images, but for the learning rate; PMPO's alpha and beta its own. PPO
learns twice from each batch, and REBEL, in the paper's table, once: twice is as many updates as PPO's."""
RATES = (3e-4, 6e-4, 1e-3, 3e-3)
"""The REBEL paper's four, but for 3e-3 in place of 1e-4: we take fewer updates."""


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        batches: collected in a run.
        tuning_batches: collected in a run that chooses a learning rate; 0 for none.
        every: batches between looks.
        images: in a look.
        seeds: of the comparison.
        methods: names in `METHODS`.
        reward: by name; "default" is the composite.
    """

    batches: int
    tuning_batches: int
    every: int
    images: int
    seeds: tuple[int, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    reward: str = "default"


SIZES = {
    "smoke": Size(1, 0, 1, 10, (0,), ("REBEL",), reward="jpeg-small"),
    "quick": Size(10, 0, 5, 40, (0,), ("REBEL", "PPO")),
    "full": Size(40, 40, 5, 60, (0, 1, 2)),
}
TUNING_SEED = 100


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        name: of the method.
        lr: the learning rate.
    """

    name: str
    lr: float
    seed: int
    batches: int
    every: int
    images: int
    reward: str = "default"


def run_setting(setting: Setting, folder: str) -> Row:
    """One row of figures; from an earlier start of the same experiment where it is there."""
    name = f"{_plain(setting.name)}-{setting.seed}"
    of = [asdict(setting), METHODS[setting.name]]
    return kept_row(Path(folder), name, of, lambda: _run(setting, Path(folder)))


def _run(setting: Setting, folder: Path) -> Row:
    """Runs in a process of its own, on one thread."""
    import torch

    torch.set_num_threads(1)
    from valence.runs.images_config import ImageMethodConfig
    from valence.runs.improve_images import improve_images

    options = METHODS[setting.name]
    # Some take two updates from each batch; a look counts batches.
    per_batch = ImageMethodConfig(**options).epochs
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        done = improve_images(
            pipeline=PIPELINE, out=Path(name) / "run", quiet=True, reward=setting.reward, seed=setting.seed,
            lr=setting.lr, batch_size=BATCH, num_samples=SAMPLES, max_steps=setting.batches * per_batch,
            eval_every=setting.every * per_batch, eval_samples=setting.images, save_every=0, log_every=10**6,
            tracker="none", threads=1, **options,
        )  # fmt: skip
        looks = json.loads((done.out / "watch.json").read_text())
        grids = folder / "grids"
        grids.mkdir(exist_ok=True)
        first, last = (sorted((done.out / "grids").iterdir())[place] for place in (0, -1))
        shutil.copy(first, grids / before_name(setting.seed, setting.images))
        shutil.copy(last, grids / grid_name(setting))
    return {
        "setting": asdict(setting), "seconds": time.perf_counter() - began,
        "looks": [
            {"queries": QUERIES * look["step"] // per_batch, "reward": look["proxy"], "judge": look["gold"],
             "kl": sum(look["kl"]) / len(look["kl"])}
            for look in looks
        ],
    }  # fmt: skip


def grid_name(setting: Setting) -> str:
    """The picture of a run's last look."""
    return f"{_plain(setting.name)}-{setting.lr:g}-{setting.batches}-seed-{setting.seed}.png"


def before_name(seed: int, images: int) -> str:
    """The picture of the first look of a seed's runs: the same for all."""
    return f"before-{images}-seed-{seed}.png"


def _plain(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def accuracy(look: Mapping[str, Any]) -> float:
    """Share of a look's images that the judge names right."""
    known = [value for value in look["judge"] if value is not None]
    return sum(known) / len(known)


def rewards(look: Mapping[str, Any]) -> list[float]:
    """The composite reward of a look's images."""
    return [value for value in look["reward"] if value is not None]


def best_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate of highest reward (IQM over images at the end) among those that keep the digits, by the lower
    end of the judge's 95% interval; where none does, of most digits kept."""
    kept = [row for row in rows if _surely(row["looks"][-1]) >= ENOUGH]
    if kept:
        return max(kept, key=lambda row: iqm(rewards(row["looks"][-1])))["setting"]["lr"]
    return max(rows, key=lambda row: accuracy(row["looks"][-1]))["setting"]["lr"]


def _surely(look: Mapping[str, Any]) -> float:
    mean, half = mean_interval(look["judge"])
    return mean - half

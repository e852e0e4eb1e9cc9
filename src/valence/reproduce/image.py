"""`valence reproduce image`: REBEL against PPO on an image policy, by reward queries, with PMPO beside them.

REBEL paper, section 5.3 and Figure 3, at the size of this machine: the small consistency model of handwritten digits
that Valence carries in place of Dreamshaper's, and a composite reward (a digit classifier and small JPEG files) in
place of the aesthetic predictor. Every run is `valence.improve_images` itself.

Protocol. Each method's learning rate is the best of the same four, on a seed that is not reported; then three
seeds. What is compared is the interquartile mean of the reward of fresh images, with a 95% bootstrap
interval stratified by seed, and whether a classifier that no one learns from still names the digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from valence.reproduce.image_claims import PAGE, READING, check_claims, plot_curves, plot_grids, table, verdict
from valence.reproduce.image_runs import (
    RATES,
    SIZES,
    TUNING_SEED,
    Setting,
    Size,
    accuracy,
    before_name,
    best_rate,
    grid_name,
    rewards,
    run_setting,
)
from valence.reproduce.language_runs import workers_for
from valence.reproduce.pool import Row, run_each
from valence.reproduce.results import print_claims, print_table, write_page, write_results

UNTUNED = RATES[2]


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes `out/results.json`, a page and pictures.

    What an interrupted run has finished lies in `out/parts`, and is not done again.
    """
    size, folder, workers = SIZES[size_name], out / "parts", workers_for(size_name, workers)
    folder.mkdir(parents=True, exist_ok=True)
    tuned: list[Row] = []
    chosen = dict.fromkeys(size.methods, UNTUNED)
    if size.tuning_batches:
        print("tuning, four learning rates a method, on a seed of its own:")
        plan = [_setting(size, name, rate, TUNING_SEED, tuning=True) for name in size.methods for rate in RATES]
        tuned = run_each(run_setting, plan, str(folder), workers=workers, say=_say)
        chosen = {
            name: best_rate([row for row in tuned if row["setting"]["name"] == name]) for name in size.methods
        }  # fmt: skip
    print("runs:")
    plan = [_setting(size, name, rate, seed) for seed in size.seeds for name, rate in chosen.items()]
    rows = run_each(run_setting, plan, str(folder), workers=workers, say=_say)
    found = {name: [row for row in rows if row["setting"]["name"] == name] for name in size.methods}
    lines, claims = table(found), check_claims(found)
    print_table("Composite reward of fresh images: interquartile mean and 95% interval over seeds", lines)
    print_claims(claims)
    said = verdict(claims)
    print(said)
    plot_curves(found, out / "image.png")
    grids = {"before": folder / "grids" / before_name(size.seeds[0], size.images)}
    grids |= {name: folder / "grids" / grid_name(Setting(**some[0]["setting"])) for name, some in found.items()}
    plot_grids(grids, out / "grids.png")
    extra = {
        "verdict": said, "learning_rates": chosen, "rates_tried": RATES if tuned else [], "tuning_seed": TUNING_SEED,
        "tuning": [_brief(row) for row in tuned], "runs": [_brief(row) for row in rows],
    }  # fmt: skip
    path = write_results(out, "image", lines, claims, size.seeds, **extra)
    text = (f"{said}\n\n{PAGE}" if said else PAGE) + (READING if size_name == "full" else "")
    write_page(out / "README.md", "REBEL against PPO on images", text, "image.png", "grids.png")
    return path


def _setting(size: Size, name: str, rate: float, seed: int, *, tuning: bool = False) -> Setting:
    batches = size.tuning_batches if tuning else size.batches
    return Setting(name, rate, seed, batches, batches if tuning else size.every, size.images, size.reward)


def _brief(row: Row) -> dict[str, Any]:
    """A run without the rewards of single images."""
    looks = [
        {"queries": look["queries"], "reward": sum(rewards(look)) / len(rewards(look)), "judge": accuracy(look),
         "kl": look["kl"]}
        for look in row["looks"]
    ]  # fmt: skip
    return row | {"looks": looks}


def _say(row: Row) -> None:
    setting, brief = row["setting"], _brief(row)["looks"]
    first, last = brief[0], brief[-1]
    print(
        f"  {setting['name']:8} lr {setting['lr']:g} seed {setting['seed']}  reward {first['reward']:.2f} -> "
        f"{last['reward']:.2f}, judge {100 * first['judge']:.0f}% -> {100 * last['judge']:.0f}%, KL(π‖ref) "
        f"{last['kl']:.1f}, {last['queries']:,} queries, {row['seconds']:.0f} s",
        flush=True,
    )

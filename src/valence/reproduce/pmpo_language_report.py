"""Claims, page and picture of `valence reproduce pmpo-language`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.reproduce.results import Claim

PAGE = """\
The task, the fitted reward model and the separate judge are those of `summarize`. Each step draws four completions of
32 prompts from the reference, which is the policy as of at most four steps ago; the better two are accepted and the
worse two rejected, or the best and the worst alone. α and β are the paper's (AR 0.5 and 0.5, A 1 and 0, R 0 and 2);
with half accepted R is bounded from β = 2 on, and AR from β = 1, by our class means (the page of PMPO says why). DPO
(β 0.1, best against worst of the same four, anchored at the policy that drew them) is the rival. A completion that does
not end within 20 tokens is worth −1. Each method was tuned over two learning rates on a seed that is not reported, on
{short} batches (the runs below have {batches}, the sweep over β {short}), by the fitted reward less 0.05 a nat of
KL(π‖π_0), among those within 12 nats; over the longer runs most go further than that, DPO by far: a smaller rate or a
larger β, chosen at full length, might have kept it. `win` is against the human's own rest, the win rates of the
picture's second panel (Fig. 6) against the first checkpoint. The paper gives curves, not tables: its side of the claims
is read off them. A full setting of 16 batches was run first, on the same seeds; the judge saw no difference from the
start in it, and it was lengthened to this one."""


def check_claims(
    lines: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], sweep: Sequence[Mapping[str, Any]]
) -> list[Claim]:
    """Judged on means over seeds; what was not run is not claimed."""
    by = {line["method"]: line for line in lines}
    claims: list[Claim] = []
    looks = {name: _looks(rows, name) for name in by}
    start = next((found[0] for found in looks.values() if found), None)
    if start is not None:
        for name in ("PMPO-AR", "PMPO-A", "PMPO-R"):
            if name in by:
                ours = f"{start['reward']:.2f} to {by[name]['reward']:.2f} ± {by[name]['reward_sd']:.2f}"
                claims.append(
                    Claim(f"{name} raises the reward", "Fig. 4, 5", ours, by[name]["reward"] > start["reward"] + 0.3)
                )
    if {"PMPO-AR", "PMPO-A", "PMPO-R"} <= by.keys() and all(len(found) > 2 for found in looks.values()):
        middle = {name: found[len(found) // 2]["reward"] for name, found in looks.items()}
        ours = ", ".join(f"{name} {value:.2f}" for name, value in middle.items()) + " halfway"
        faster = middle["PMPO-AR"] > max(middle["PMPO-A"], middle["PMPO-R"])
        claims.append(Claim("both signals learn faster than either alone", "Fig. 4: AR rises first", ours, faster))
    if {"DPO", "PMPO-AR"} <= by.keys():
        best, dpo = by["PMPO-AR"], by["DPO"]
        ours = f"AR {best['reward']:.2f} ± {best['reward_sd']:.2f}, DPO {dpo['reward']:.2f} ± {dpo['reward_sd']:.2f}"
        gain = dpo["reward"] - start["reward"] if start else 0.0
        near = start is not None and gain > 0.3 and best["reward"] - start["reward"] >= 0.8 * gain
        claims.append(Claim("AR is competitive with DPO (four fifths of its gain or more)", "Fig. 4", ours, near))
    claims += _parting(looks)
    return claims + (_sweep_claims(sweep) if sweep else [])


def _looks(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, float]]:
    """Means over seeds, look by look."""
    curves = [row["curve"] for row in rows if row["name"] == name]
    keys = ("step", "reward", "gold", "gold_win_rate", "kl_policy_ref")
    found = [{key: statistics.fmean(look[key] for look in at) for key in keys} for at in zip(*curves, strict=False)]
    for look, at in zip(found, zip(*curves, strict=False), strict=True):
        look["half"] = sum(one["gold_win_rate_95_half_width"] ** 2 for one in at) ** 0.5 / len(at)
    return found


def _parting(looks: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Claim]:
    """Figure 6: the win rate rises above one half, and AR's falls again while its reward goes on."""
    ar = looks.get("PMPO-AR", [])
    if len(ar) < 3:
        return []
    wins = [100 * look["gold_win_rate"] for look in ar]
    said = ", ".join(f"{win:.0f}" for win in wins)
    top = wins.index(max(wins))
    last = ar[-1]
    sure = 100 * (ar[top]["half"] ** 2 + last["half"] ** 2) ** 0.5
    parted = wins[-1] < max(wins) - sure and last["reward"] > ar[top]["reward"]
    final = f"{wins[-1]:.1f} ± {100 * last['half']:.1f} % at the end"
    return [
        Claim("PMPO-AR ends above the first checkpoint by another judge, beyond its interval", "Fig. 4 right: over 50%",
              final, wins[-1] - 100 * last["half"] > 50),
        Claim("AR then games the reward: the win rate falls by more than its interval, the reward does not", "Fig. 6",
              f"{said} %, reward {ar[top]['reward']:.2f} at the best, {last['reward']:.2f} at the end", parted),
    ]  # fmt: skip


def _sweep_claims(sweep: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Figure 5."""
    found = {line["method"]: line for line in sweep}
    rejected = {name.partition("=")[2]: line for name, line in found.items() if name.startswith("PMPO-R")}
    accepted = {name.partition("=")[2]: line for name, line in found.items() if name.startswith("PMPO-A ")}
    said = ", ".join(
        f"β {beta}: {line['reward']:.2f} (KL {line['kl_policy_ref']:.1f})" for beta, line in rejected.items()
    )
    tame, wild = rejected["2"], rejected["0"]
    alone = ", ".join(f"β {beta}: {line['reward']:.2f}" for beta, line in accepted.items())
    gains = [line["reward"] - line["start_reward"] for line in accepted.values()]
    return [
        Claim("R needs a β that is large enough: β 2 has more reward than β 0, and less KL", "Fig. 5", said,
              tame["reward"] > wild["reward"] and tame["kl_policy_ref"] < wild["kl_policy_ref"]),
        Claim("A learns at every β (its reward rises by 0.2 or more)", "Fig. 5: insensitive", alone, min(gains) > 0.2),
    ]  # fmt: skip


def plot(rows: Sequence[Mapping[str, Any]], swept: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Reward and win rate by step, both against the square root of KL, and the sweep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8))
    for name in dict.fromkeys(row["name"] for row in rows):
        looks = _looks(rows, name)
        steps, far = [look["step"] for look in looks], [max(look["kl_policy_ref"], 0.0) ** 0.5 for look in looks]
        axes[0, 0].plot(steps, [look["reward"] for look in looks], "o-", markersize=3, label=name)
        axes[0, 1].plot(steps, [100 * look["gold_win_rate"] for look in looks], "o-", markersize=3, label=name)
        axes[0, 2].plot(far, [look["gold"] for look in looks], "o-", markersize=3, label=name)
    axes[0, 0].set(title="Reward of the fitted model (Fig. 4 left)", xlabel="step")
    axes[0, 1].set(title="Win against the first checkpoint, %, another judge (Fig. 6)", xlabel="step")
    axes[0, 1].axhline(50, color="grey", linewidth=0.8)
    axes[0, 2].set(title="The other judge's own score", xlabel="√KL(π‖π_0), √nats")
    for axis, kind in zip(axes[1], ("PMPO-AR", "PMPO-A", "PMPO-R"), strict=True):
        for row in swept:
            if row["name"].partition(" ")[0] == kind:
                seen = [update for update in row["updates"] if "reward" in update]
                label = "β = " + row["name"].partition("=")[2]
                axis.plot([update["step"] for update in seen], [update["reward"] for update in seen], label=label)
        axis.set(title=f"{kind}: reward of each batch by β (Fig. 5)", xlabel="step")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)

"""`valence offline-control`: a policy from episodes that others lived, with labels given or made from a learned value.

PMPO's BC form (paper, section 5.3): accepted actions are raised, rejected ones lowered, and the likelihood of all
actions stands for the KL to the policy that made the data, which nobody has.

Shape legend: see `valence.sources.episodes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from valence.data.episodes import read_episodes
from valence.errors import UserError
from valence.feedback.advantages import episode_advantages, label_advantage
from valence.objectives.pmpo import PMPO, pmpo_beta
from valence.policies.actor import torso
from valence.policies.gaussian import GaussianPolicy
from valence.policies.runner import save_actor
from valence.runs.offline_control_config import LOSSES, OfflineControlOptions
from valence.sources.episodes import EpisodeSource, EpisodeTable, Rows, mixture, tabulate
from valence.training.learner import Learner

VALUE_ROUNDS, VALUE_BATCH, VALUE_LR = 12, 2048, 1e-3


@dataclass(frozen=True)
class OfflineControlResult:
    """What came of it.

    Args:
        folder: `PolicyRunner.load(folder)` acts.
        episodes, transitions: how many there were.
        accepted, rejected: how many transitions had that label.
        alpha, beta: as used.
        figures: the last update's.
    """

    folder: Path
    episodes: int
    transitions: int
    accepted: int
    rejected: int
    alpha: float
    beta: float
    figures: dict[str, float]


def fit_value(
    table: EpisodeTable, *, seed: int, steps: int, discount: float, trace: float, expectile: float,
    hidden: tuple[int, ...] = (256, 256), batch_size: int = VALUE_BATCH,
) -> Float[Tensor, "E L"]:  # fmt: skip
    """V of every observation, in discounted reward: an expectile of the returns of the behaviours that made the data.

    Fitted lambda-returns: targets are computed on whole episodes, `VALUE_ROUNDS` times, with `steps` regression steps
    each. No value can lie beyond that of the least or the largest reward for ever (or of 0, where episodes truly
    end): what a network says beyond is cut.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(torso(table.observation.shape[-1], hidden), nn.Linear(hidden[-1], 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=VALUE_LR)
    # Falls to 0: the last targets are then fitted closely, and a bias of V would be one of every label's.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=VALUE_ROUNDS * steps)
    # In units of 1 / (1 - discount), so that the network's outputs are of order 1.
    unit = 1 / (1 - discount)
    least, most = (float(bound) for bound in table.reward[table.present].aminmax())
    if bool(table.terminated.any()):
        # After a true end there is nothing: that is worth 0.
        least, most = min(least, 0.0), max(most, 0.0)
    rows = table.observation[:, :-1][table.present]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(VALUE_ROUNDS):
        value = _values(net, table).clamp(least, most) * unit
        ahead = advantages(table, value, discount=discount, trace=trace)
        target = (value[:, :-1] + ahead)[table.present] / unit
        for _ in range(steps):
            picks = torch.randint(len(rows), (batch_size,), generator=generator)
            error = target[picks] - net(rows[picks])[:, 0]
            side = torch.where(error > 0, expectile, 1 - expectile)
            loss = (side * error.square()).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return _values(net, table).clamp(least, most) * unit


@torch.no_grad()
def _values(net: nn.Module, table: EpisodeTable) -> Float[Tensor, "E L"]:
    return torch.cat([net(chunk)[..., 0] for chunk in table.observation.split(100)])


def advantages(
    table: EpisodeTable, value: Float[Tensor, "E L"], *, discount: float, trace: float
) -> Float[Tensor, "E S"]:
    """Of every action in the data."""
    return episode_advantages(table.reward, value, table.present, table.terminated, discount=discount, trace=trace)


def train_policy(
    rows: Rows, *, alpha: float, beta: float, lr: float, steps: int, seed: int, batch_size: int = 512,
    hidden: tuple[int, ...] = (256, 256), min_scale: float = 0.3,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[GaussianPolicy, dict[str, float]]:  # fmt: skip
    """Learn a policy from rows: (the policy, which reads scaled observations; the last update's figures)."""
    torch.manual_seed(seed)
    accepted, rejected = rows.fractions()
    objective = PMPO(
        alpha=alpha, beta=beta, accepted_fraction=accepted, rejected_fraction=rejected, regularizer="bc"
    )  # fmt: skip
    init_scale = max(0.5, 1.5 * min_scale)
    policy = GaussianPolicy(
        rows.observation.shape[1], rows.action.shape[1], hidden, min_scale=min_scale, init_scale=init_scale
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    learner = Learner(policy, objective, None, {"policy": optimizer}, total_steps=steps)
    source, figures = EpisodeSource(rows, batch_size=batch_size, seed=seed), dict[str, float]()
    while learner.step < steps:
        figures = learner.update(source.next(policy))
        if on_step is not None:
            on_step(learner.step, figures)
    return policy, figures


def offline_control(
    episodes: str | Path, out: str | Path, options: OfflineControlOptions | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> OfflineControlResult:  # fmt: skip
    """Learn from a folder in Minari's format; writes `out/policy` and `out/results.json`.

    Raises:
        UserError: the folder cannot be read, or holds nothing that the options ask for; or `out` holds a run already.
    """
    options, out = options or OfflineControlOptions(), Path(out)
    if (out / "results.json").exists() or (out / "policy").exists():
        raise UserError(f"{out} holds a run already: give another --out")
    found = read_episodes(episodes)
    actions = np.concatenate([episode.actions for episode in found])
    low, high = np.minimum(actions.min(0), -1.0), np.maximum(actions.max(0), 1.0)
    table = tabulate(found)
    scaled = (table.action - torch.tensor((high + low) / 2)) / torch.tensor((high - low) / 2)
    table = EpisodeTable(**{**vars(table), "action": scaled.float()})
    sign = make_labels(table, options)
    rows = mixture(table, sign, **{loss: loss in options.use for loss in LOSSES})
    alpha, beta = _weights(rows, sign, options)
    policy, figures = train_policy(
        rows, alpha=alpha, beta=beta, lr=options.lr, steps=options.steps, seed=options.seed,
        batch_size=options.batch_size, hidden=options.hidden, min_scale=options.min_scale, on_step=on_step,
    )  # fmt: skip
    unscale(policy, table)
    save_actor(out / "policy", policy, low=low.astype(np.float64), high=high.astype(np.float64))
    result = OfflineControlResult(
        out, len(found), int(table.present.sum()), int((sign > 0).sum()), int((sign < 0).sum()), alpha, beta, figures
    )
    about = {name: value for name, value in vars(result).items() if name != "folder"}
    (out / "results.json").write_text(json.dumps(about | {"options": asdict(options)}, indent=1) + "\n")
    return result


def make_labels(table: EpisodeTable, options: OfflineControlOptions) -> Int[Tensor, "E S"]:
    """The labels given with the data, or the sign of the advantage of every action.

    Raises:
        UserError: given labels are asked for, and there are none.
    """
    given = bool((table.label != 0).any())
    if options.labels == "given" and not given:
        raise UserError("the episodes carry no labels (infos/label, +1 or -1): use --labels advantage")
    if options.labels != "advantage" and given:
        return table.label
    value = fit_value(
        table, seed=options.seed, steps=150, discount=options.discount, trace=options.trace,
        expectile=options.expectile, hidden=options.hidden,
    )  # fmt: skip
    return label_advantage(advantages(table, value, discount=options.discount, trace=options.trace), table.present)


def _weights(rows: Rows, sign: Int[Tensor, "E S"], options: OfflineControlOptions) -> tuple[float, float]:
    """alpha and beta: what was asked for, or what the labels that are there allow.

    Raises:
        UserError: rejections without cloning: nothing would hold the policy.
    """
    accepted, rejected = rows.fractions()
    if rejected and "clone" not in options.use:
        raise UserError("rejections alone push the policy away without end: use clone too (--use reject clone)")
    alpha = 0.5 if options.alpha is None else options.alpha
    if not accepted or not rejected:
        alpha = 1.0 if accepted or not rejected else 0.0
    # Which share is rejected is known from all labels, also where the accepted ones are not used.
    counts = {"accepted": float((sign > 0).sum()), "rejected": float((sign < 0).sum())}
    bound = pmpo_beta(alpha=alpha, **counts) if rejected else 1.0
    return alpha, bound if options.beta is None else options.beta


@torch.no_grad()
def unscale(policy: GaussianPolicy, table: EpisodeTable) -> None:
    """Let the policy read raw observations: the first layer takes the scaling in."""
    first = policy.torso[0]
    assert isinstance(first, nn.Linear)
    first.weight.div_(table.scale)
    first.bias.sub_(first.weight @ table.shift)

"""Matrix games of `general-preference`: self-play with REBEL and a Bradley-Terry reward, exact and from samples.

A game is `win [A, A]`, P(row's action beats column's), with win + win.T = 1. Source: REBEL paper, section D.
Shape legend: A actions, K samples, P comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.common import experiment as common
from valence.feedback.conversions import preferences_to_self_play
from valence.objectives.bradley_terry import bradley_terry_loss
from valence.objectives.rebel import REBEL
from valence.policies.categorical import CategoricalPolicy
from valence.training.learner import Learner
from valence.training.loop import Schedule, train
from valence.types import Action, Batch, Preferences, Rewards

SPO, RATED = "SPO-REBEL", "Bradley-Terry + REBEL"
SAMPLES, EPOCHS, LR = 128, 4, 0.003
"""Sampled form: actions per iteration, optimizer steps on them, and Adam's learning rate."""
COMPARISONS = 2000
"""Sampled form: votes that the Bradley-Terry reward is fitted to."""
FLOOR = 1e-3
"""Sampled form: least probability of an action."""
CYCLES = ("rock-paper-scissors", "biased cycle")
DRAWS = {f"random 8, draw {seed}": seed for seed in (1, 2, 3)}
GAMES = (*CYCLES, *DRAWS)


def from_edges(edges: Sequence[Sequence[float]]) -> Float[Tensor, "A A"]:
    """P(win) from l = 2 P(win) - 1."""
    return (torch.tensor(edges, dtype=torch.float64) + 1) / 2


def make_games() -> dict[str, Float[Tensor, "A A"]]:
    """Two cycles of three actions, and three draws of eight actions with l uniform in [-1, 1]."""
    games = {
        "rock-paper-scissors": from_edges([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]),
        "biased cycle": from_edges([[0.0, 0.2, -0.8], [-0.2, 0.0, 0.5], [0.8, -0.5, 0.0]]),
    }
    for name, seed in DRAWS.items():
        draw = 2 * torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1
        upper = draw.triu(1)
        games[name] = (upper - upper.mT + 1) / 2
    return games


def start_policy(actions: int) -> Float[Tensor, " A"]:
    """0.8 on the first action, the rest spread evenly."""
    return torch.tensor([0.8] + [0.2 / (actions - 1)] * (actions - 1), dtype=torch.float64)


def has_winner(win: Float[Tensor, "A A"]) -> bool:
    """Whether one action beats every other (a Condorcet winner); then it alone is the solution."""
    return bool(((win > 0.5).sum(-1) == len(win) - 1).any())


def duality_gap(win: Float[Tensor, "A A"], policy: Float[Tensor, "*T A"]) -> Float[Tensor, "*T"]:
    """max l(y, policy) - min l(policy, y): 0 at a minimax winner and nowhere else, 2 at most."""
    return 2 * (policy @ (2 * win - 1).mT).amax(-1)


@dataclass(frozen=True)
class Curve:
    """Duality gaps by iteration: of the average of the iterates so far, and of the iterate itself."""

    average: list[float]
    last: list[float]

    @classmethod
    def of(cls, win: Tensor, policies: Float[Tensor, "T A"]) -> Curve:
        count = torch.arange(1, len(policies) + 1, dtype=policies.dtype)[:, None]
        return cls(duality_gap(win, policies.cumsum(0) / count).tolist(), duality_gap(win, policies).tolist())

    def thinned(self, points: int = 60) -> dict[str, list[float]]:
        """At most `points` iterations, evenly spaced in their logarithm, the last one included."""
        size = len(self.last)
        at = sorted({max(1, round(size ** (k / (points - 1)))) for k in range(points)})
        return {"iteration": [float(t) for t in at], "average": [self.average[t - 1] for t in at],
                "last": [self.last[t - 1] for t in at]}  # fmt: skip


def exact_self_play(win: Float[Tensor, "A A"], *, eta: float, steps: int) -> Float[Tensor, "T A"]:
    """The iterates of SPO with REBEL's regression solved exactly: pi_{t+1} = pi_t e^{eta l(., pi_t)} / Z."""
    edges, log_policy = 2 * win - 1, start_policy(len(win)).log()
    policies = torch.empty(steps, len(win), dtype=torch.float64)
    for step in range(steps):
        policies[step] = log_policy.exp()
        log_policy = (log_policy + eta * (edges @ policies[step])).log_softmax(-1)
    return policies


def exact_rated(win: Float[Tensor, "A A"], *, eta: float, steps: int) -> Float[Tensor, "T A"]:
    """The iterates of REBEL under the Bradley-Terry reward of all comparisons of the start policy."""
    start = start_policy(len(win))
    first, second = torch.cartesian_prod(torch.arange(len(win)), torch.arange(len(win))).unbind(-1)
    scores = fit_bradley_terry(first, second, win[first, second], start[first] * start[second], len(win))
    times = eta * torch.arange(steps, dtype=torch.float64)[:, None]
    return (start.log() + times * scores).softmax(-1)


def fit_bradley_terry(first: Tensor, second: Tensor, win: Tensor, weight: Tensor, actions: int) -> Float[Tensor, " A"]:
    """Scores that maximise the weighted likelihood of comparisons, in nats, with mean 0.

    A ridge of 1e-4 keeps the scores of actions without comparisons finite.
    """
    scores = torch.zeros(actions, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = bradley_terry_loss(scores[first] - scores[second], 1.0) * win
        losses = losses + bradley_terry_loss(scores[second] - scores[first], 1.0) * (1 - win)
        loss = (weight * losses).sum() / weight.sum() + 1e-4 * scores.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return scores.detach() - scores.detach().mean()


def sampled_scores(win: Float[Tensor, "A A"], *, comparisons: int, seed: int) -> Float[Tensor, " A"]:
    """A Bradley-Terry reward from binary votes on pairs drawn from the start policy."""
    generator = torch.Generator().manual_seed(seed)
    start = start_policy(len(win))
    first, second = (torch.multinomial(start, comparisons, replacement=True, generator=generator) for _ in range(2))
    votes = torch.bernoulli(win[first, second], generator=generator)
    return fit_bradley_terry(first, second, votes, torch.ones_like(votes), len(win))


@dataclass
class GameSource:
    """Actions drawn from the current policy, with rewards from votes among them or from fixed scores.

    Args:
        win: the game.
        scores: the reward of each action; None takes votes.
        seed: random seed of the draws.
        policies: the probabilities of every iterate so far.
    """

    win: Float[Tensor, "A A"]
    scores: Float[Tensor, " A"] | None
    seed: int
    unit: str = "actions"
    num_units: int = SAMPLES
    policies: list[Tensor] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError("the experiment does not resume a game")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("the experiment does not resume a game")

    @torch.no_grad()
    def next(self, policy: Any) -> Batch:
        context = torch.ones(1, 1)
        self.policies.append(policy.logits(context).exp().flatten().double())
        action: Action = policy.sample(context, SAMPLES, self.generator)
        picks = action.steps[..., 0, 0]
        present = torch.ones_like(picks, dtype=torch.bool)
        rewards = self._votes(picks, present) if self.scores is None else Rewards(self.scores[picks].float(), present)
        batch = Batch(context, action, rewards, on_policy=present)
        old = policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob
        return Batch(context, action, rewards, old_log_prob=old, on_policy=present)

    def _votes(self, picks: Tensor, present: Tensor) -> Rewards:
        """One binary vote on each pair of samples."""
        chances = self.win[picks[:, :, None], picks[:, None, :]]
        win = torch.bernoulli(chances, generator=self.generator).float()
        once = torch.ones_like(win, dtype=torch.bool).triu(1)
        return preferences_to_self_play(Preferences(win, once, present))


def play(win: Float[Tensor, "A A"], method: str, *, eta: float, iterations: int, seed: int) -> Float[Tensor, "T A"]:
    """The iterates of the package's learner on a Categorical policy, from samples and binary votes."""
    torch.manual_seed(seed)
    policy = CategoricalPolicy(1, 1, (16,), bins=len(win), min_prob=FLOOR)
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.copy_(start_policy(len(win)).log())
    scores = None if method == SPO else sampled_scores(win, comparisons=COMPARISONS, seed=seed)
    source = GameSource(win, scores, seed)
    adam = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
    objective: Any = REBEL(eta=eta, anchor="old")
    learner = Learner(policy, objective, None, {"policy": adam})
    train(learner, source, Schedule(iterations * EPOCHS, log_every=0, track_every=0, num_epochs=EPOCHS))
    return torch.stack(source.policies)


@dataclass(frozen=True)
class Setting(common.Setting):
    """One run of the method `name` on a game."""

    game: str = CYCLES[0]
    eta: float = 0.1
    iterations: int = 1


def play_row(setting: Setting) -> dict[str, Any]:
    """The row of a sampled run."""
    win = make_games()[setting.game]
    policies = play(win, setting.name, eta=setting.eta, iterations=setting.iterations, seed=setting.seed)
    ends = {"average": policies.mean(0).tolist(), "last": policies[-1].tolist()}
    return _row(win, setting, policies) | {"seed": setting.seed} | ends


def exact_row(setting: Setting) -> dict[str, Any]:
    """The row of an exact run."""
    win = make_games()[setting.game]
    solve = exact_self_play if setting.name == SPO else exact_rated
    return _row(win, setting, solve(win, eta=setting.eta, steps=setting.iterations))


def _row(win: Tensor, setting: Setting, policies: Tensor) -> dict[str, Any]:
    curve = Curve.of(win, policies)
    return {
        "game": setting.game, "method": setting.name, "eta": setting.eta, "iterations": setting.iterations,
        "gap_average": curve.average[-1], "gap_last": curve.last[-1], "gap_start": curve.last[0],
        "curve": curve.thinned(),
    }  # fmt: skip


def rate(game: str, lengths: Sequence[int]) -> dict[str, Any]:
    """How the exact average's gap falls with the number of iterations T at eta = sqrt(ln A / T).

    `slope` is that of log gap against log T by least squares; Theorem 2 predicts -1/2 or less.
    """
    win = make_games()[game]
    gaps = []
    for steps in lengths:
        policies = exact_self_play(win, eta=math.sqrt(math.log(len(win)) / steps), steps=steps)
        gaps.append(float(duality_gap(win, policies.mean(0))))
    x, y = torch.tensor(lengths).double().log(), torch.tensor(gaps).double().clamp(min=1e-12).log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return {"game": game, "lengths": list(lengths), "gaps": gaps, "slope": slope}

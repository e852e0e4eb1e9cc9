"""Fresh completions as a source of batches: sample, ask what they are worth, remember who drew them.

`next` takes the next prompts, draws K completions of each from the policy as it stands (or from the reference), has
them judged, and measures log pi_t of every one by the training model itself, never by the sampler. With a KL weight
gamma the reward is shaped towards pi_0,

    r - gamma (log pi_t(y|x) - log pi_0(y|x)),

its parts falling on the steps they are of; a completion that did not end within its length has a fixed reward in place
of r. Source: REBEL paper, appendix H.1.4.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from valence.data.collate import move, pad_actions, pad_left
from valence.data.records import Text
from valence.errors import UserError
from valence.feedback import has_spread, on_last_step, reward_statistics
from valence.policies.rows import TokenContext
from valence.protocols import Reference
from valence.rewards.ensemble import Judge
from valence.types import Action, Batch, Feedback, Labels, Likelihood, Rewards

Convert = Callable[[Rewards], Feedback]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids and as it was read; `columns` are its row's other fields, for reward functions.

    Args:
        given: completions of a data set as token ids, for the hybrid form: judged beside what the policy draws.
    """

    ids: list[int]
    prompt: Text
    columns: dict[str, Any] = field(default_factory=dict)
    given: tuple[list[int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """How completions are gathered and judged.

    Args:
        batch_size: prompts in a batch.
        num_samples: K, completions drawn for each.
        kl_weight: gamma, reward for each nat, >= 0.
        unfinished_reward: what replaces the reward of a completion that did not end; None leaves it as judged.
        from_reference: draw from the reference, as online PMPO does, not from the policy.
        given: also judge so many completions that the row itself holds (REBEL's hybrid form).
    Raises:
        ValueError: a field out of range.
    """

    batch_size: int = 32
    num_samples: int = 2
    kl_weight: float = 0.0
    unfinished_reward: float | None = None
    from_reference: bool = False
    given: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_samples", 1), ("kl_weight", 0), ("given", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least {least}")


def ask(judge: Judge, rows: Sequence[EncodedPrompt], texts: Sequence[str]) -> Sequence[float | None]:
    """What a judge says of one completion for each row: messages where the prompt is messages, columns as lists."""
    plain = [isinstance(row.prompt, str) for row in rows]
    prompts = [row.prompt if simple else [turn._asdict() for turn in row.prompt]  # pyright: ignore[reportAttributeAccessIssue]
               for row, simple in zip(rows, plain, strict=True)]  # fmt: skip
    given = [text if simple else [{"role": "assistant", "content": text}]
             for text, simple in zip(texts, plain, strict=True)]  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row.columns if name not in ("prompts", "completions"))
    return judge(prompts, given, **{name: [row.columns.get(name) for row in rows] for name in names})


class OnlineSource:
    """See the page's top.

    Args:
        prompts: what is completed; each epoch in a fresh order.
        judge: gives a number for each completion, or None where it has none.
        start: pi_0, of the KL weight; None only where that is 0.
        reference: whose completions are drawn under `from_reference`.
        convert: turns rewards into the feedback that the objective takes; None leaves them.
        seed: of order and sampling.

    `even` of `batches` had no prompt of which one completion was better than another.
    Raises:
        ValueError: no prompts, or a KL weight without pi_0.
    """

    unit = "completions"

    def __init__(
        self, prompts: Sequence[EncodedPrompt], judge: Judge, settings: OnlineSettings, *, pad: int,
        start: Reference | None = None, reference: Reference | None = None, convert: Convert | None = None,
        seed: int = 0, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        if not prompts:
            raise ValueError("an online source needs at least one prompt")
        if settings.kl_weight and start is None:
            raise ValueError("a KL weight is of pi_0, and no policy to start from was given")
        if settings.from_reference and reference is None:
            raise ValueError("completions are to be drawn from a reference, and none was given")
        self.prompts, self.judge, self.settings, self.pad = prompts, judge, settings, pad
        self.start, self.reference, self.convert = start, reference, convert
        self.seed, self.device = seed, device
        self.epoch, self.position, self.num_units = 0, 0, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.figures: dict[str, float] = {}
        self.batches = self.even = 0

    def next(self, policy: Any) -> Batch:
        """Sample and judge. `figures` then holds the batch's mean reward, KL and counts."""
        began = self.state_dict()
        try:
            return self._next(policy)
        except UserError:
            # A judge that is gone: the same prompts and draws are there for the run that goes on.
            self.load_state_dict(began)
            raise

    def _next(self, policy: Any) -> Batch:
        chosen = self._prompts()
        context = move(pad_left([row.ids for row in chosen], self.pad), self.device)
        action = self._act(policy, context, chosen)
        values = self._judged(chosen, action)
        ended = self._ended(policy, action)
        if self.settings.unfinished_reward is not None:
            values = torch.where(ended | values.isnan(), values, self.settings.unfinished_reward)
        present = ~values.isnan() & action.mask.any(-1)
        found = self._measure(policy, context, action)
        score = torch.where(present, values, 0.0)
        batch = self._shaped(context, action, score, present, found)
        own = torch.arange(present.shape[1], device=present.device) < self.settings.num_samples
        self._report(score, present & own, ended, batch, found)
        if self.convert is not None:
            assert isinstance(batch.feedback, Rewards)
            batch = dataclasses.replace(batch, feedback=self.convert(batch.feedback))
        # What nothing is learned from is not measured either.
        kept = dataclasses.replace(batch.action, mask=batch.action.mask & batch.present[..., None])
        return dataclasses.replace(batch, action=kept)

    def _prompts(self) -> list[EncodedPrompt]:
        picked: list[EncodedPrompt] = []
        while len(picked) < self.settings.batch_size:
            if self.position >= len(self.prompts):
                self.epoch, self.position = self.epoch + 1, 0
            shuffling = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(len(self.prompts), generator=shuffling).tolist()
            some = order[self.position : self.position + self.settings.batch_size - len(picked)]
            picked += [self.prompts[place] for place in some]
            self.position += len(some)
        return picked

    @torch.no_grad()
    def _act(self, policy: Any, context: TokenContext, chosen: Sequence[EncodedPrompt]) -> Action:
        count = self.settings.num_samples
        if self.settings.from_reference:
            assert self.reference is not None
            with self.reference.active() as other:
                action = other.sample(context, count, self.generator)
        else:
            action = policy.sample(context, count, self.generator)
        if not self.settings.given:
            return action
        rows = [[row[mask].tolist() for row, mask in zip(*part, strict=True)]
                for part in zip(action.steps, action.mask, strict=True)]  # fmt: skip
        rows = [drawn + [list(ids) for ids in row.given[: self.settings.given]]
                for drawn, row in zip(rows, chosen, strict=True)]  # fmt: skip
        output = [[policy.decode(torch.tensor(ids)) for ids in row] for row in rows]
        widest = max(map(len, output))
        output = [row + [""] * (widest - len(row)) for row in output]
        return dataclasses.replace(move(pad_actions(rows, self.pad), self.device), output=output)

    def _judged(self, chosen: Sequence[EncodedPrompt], action: Action) -> Tensor:
        """What each completion is worth, `[N, K]`, NaN where that is not known."""
        assert action.output is not None
        there = action.mask.any(-1)
        places = [(n, k) for n, row in enumerate(action.output) for k in range(len(row)) if there[n, k]]
        output = action.output
        given = ask(self.judge, [chosen[n] for n, _ in places], [output[n][k] for n, k in places])
        values = torch.full(there.shape, math.nan)
        for (n, k), value in zip(places, given, strict=True):
            if value is not None:
                values[n, k] = value
        self.num_units = len(places)
        return values.to(self.device)

    def _ended(self, policy: Any, action: Action) -> Tensor:
        """Which completions have an end token, `[N, K]`."""
        ends = torch.tensor(policy.end_token_ids, device=action.steps.device)
        return (torch.isin(action.steps, ends) & action.mask).any(-1)

    @torch.no_grad()
    def _measure(self, policy: Any, context: TokenContext, action: Action) -> Likelihood:
        """log pi_t, and log pi_0 where the KL weighs, by the training model."""
        there = action.mask.any(-1)
        batch = Batch(context, action, Labels(torch.zeros_like(there, dtype=torch.long), there))
        # Of another policy's draws log pi_t / pi_0 is no KL, and not worth a pass.
        asks = self.settings.kl_weight > 0 or (self.start is not None and not self.settings.from_reference)
        needs = frozenset({"log_prob", "ref_log_prob"} if asks else {"log_prob"})
        return policy.likelihood(batch, self.start if asks else None, needs).detach()

    def _shaped(
        self, context: TokenContext, action: Action, score: Tensor, present: Tensor, found: Likelihood
    ) -> Batch:
        """The collected batch, with the KL's price taken off its rewards."""
        mask = action.mask
        steps = on_last_step(score, mask)
        if self.settings.kl_weight:
            assert found.ref_log_prob is not None
            steps = steps - self.settings.kl_weight * (found.log_prob - found.ref_log_prob) * mask
        value = torch.where(present, steps.sum(-1), 0.0)
        # What was given by a data set, or drawn by a reference, is not pi_t's own.
        own = torch.arange(mask.shape[1], device=mask.device) < self.settings.num_samples
        on_policy = own.expand(present.shape) & (not self.settings.from_reference)
        return Batch(
            context, action, Rewards(value, present), old_log_prob=found.log_prob * mask, on_policy=on_policy,
            step_reward=steps,
        )  # fmt: skip

    def _report(self, score: Tensor, drawn: Tensor, ended: Tensor, batch: Batch, found: Likelihood) -> None:
        """Figures of what was drawn; what a data set gave is not the policy's."""
        own = batch.action.mask[:, : self.settings.num_samples].any(-1).sum()
        self.figures = {"unjudged": float(own - drawn.sum())}
        self.batches += 1
        self.even += int(not bool(has_spread(Rewards(score, drawn)).any()))
        if not bool(drawn.any()):
            return
        mean, deviation = reward_statistics(Rewards(score, drawn))
        assert isinstance(batch.feedback, Rewards)
        self.figures |= {
            "reward": mean, "reward_std": deviation, "shaped_reward": batch.feedback.value[drawn].mean().item(),
            "ended": ended[drawn].float().mean().item(),
            "length": batch.action.mask.sum(-1)[drawn].float().mean().item(),
        }  # fmt: skip
        if found.ref_log_prob is not None and not self.settings.from_reference:
            gap = (found.log_prob - found.ref_log_prob).sum(-1)
            self.figures["kl_policy_start"] = gap[drawn].mean().item()

    @cached_property
    def fingerprint(self) -> str:
        """Of all prompts, with what belongs to them."""
        said = "\n".join(f"{row.ids}{sorted(row.columns.items())}{row.given}" for row in self.prompts)
        return hashlib.sha256(said.encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch, "position": self.position, "seed": self.seed, "prompts": self.fingerprint,
            "generator": self.generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError where the prompts are not those that the state was taken on."""
        if state["prompts"] != self.fingerprint:
            raise UserError("--resume needs the prompts the run began with, and they have changed: give another --out")
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]
        self.generator.set_state(state["generator"])

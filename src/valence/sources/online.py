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

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from valence.data.collate import move, pad_actions, pad_left
from valence.errors import UserError
from valence.feedback import has_spread, on_last_step, reward_statistics
from valence.protocols import Reference
from valence.rewards.ensemble import Judge
from valence.sources.prompts import EncodedPrompt, ask
from valence.types import Action, Batch, Feedback, Labels, Likelihood, Rewards

Convert = Callable[[Rewards], Feedback]
TOGETHER = 512
"""Completions drawn, or measured, at a time: a batch may be a whole data set."""


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
        context = self._context(policy, chosen)
        action = self._act(policy, context, chosen)
        values = self._judged(chosen, action)
        ended = self._ended(policy, action)
        if self.settings.unfinished_reward is not None:
            values = torch.where(ended | values.isnan(), values, self.settings.unfinished_reward)
        present = ~values.isnan() & action.mask.any(-1)
        found = self._measure(policy, context, action)
        score = torch.where(present, values, 0.0)
        batch = self._shaped(context, action, self._advantage(chosen, score, present), present, found)
        own = torch.arange(present.shape[1], device=present.device) < self.settings.num_samples
        self._report(score, present & own, ended, batch, found)
        if self.convert is not None:
            assert isinstance(batch.feedback, Rewards)
            batch = dataclasses.replace(batch, feedback=self.convert(batch.feedback))
        # What nothing is learned from is not measured either.
        kept = dataclasses.replace(batch.action, mask=batch.action.mask & batch.present[..., None])
        return dataclasses.replace(batch, action=kept)

    def _context(self, policy: Any, chosen: Sequence[EncodedPrompt]) -> Any:
        """The prompts as the policy reads them."""
        return move(pad_left([row.ids for row in chosen], self.pad), self.device)

    def _advantage(self, chosen: Sequence[EncodedPrompt], score: Tensor, present: Tensor) -> Tensor:
        """What is learned from, of each score: here the score itself."""
        return score

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

    def _parts(self, contexts: int) -> list[slice]:
        """Contexts that go through the model together."""
        size = max(1, TOGETHER // (self.settings.num_samples + self.settings.given))
        return [slice(start, min(start + size, contexts)) for start in range(0, contexts, size)]

    @torch.no_grad()
    def _act(self, policy: Any, context: Any, chosen: Sequence[EncodedPrompt]) -> Action:
        drawn = [self._draw(policy, context.select(part)) for part in self._parts(len(chosen))]
        if len(drawn) == 1 and not self.settings.given:
            return drawn[0]
        rows = [[row[mask].tolist() for row, mask in zip(*both, strict=True)]
                for action in drawn for both in zip(action.steps, action.mask, strict=True)]  # fmt: skip
        output = [list(row) for action in drawn for row in action.output or ()]
        for row, texts, prompt in zip(rows, output, chosen, strict=True):
            given = [list(ids) for ids in prompt.given[: self.settings.given]]
            row += given
            texts += [policy.decode(torch.tensor(ids)) for ids in given]
        widest = max(map(len, output))
        output = [row + [""] * (widest - len(row)) for row in output]
        return dataclasses.replace(move(pad_actions(rows, self.pad), self.device), output=output)

    def _draw(self, policy: Any, context: Any) -> Action:
        with self._drawer(policy) as drawer:
            return drawer.sample(context, self.settings.num_samples, self.generator)

    def _drawer(self, policy: Any) -> contextlib.AbstractContextManager[Any]:
        """pi_t: the policy as it stands, or the reference."""
        if not self.settings.from_reference:
            return contextlib.nullcontext(policy)
        assert self.reference is not None
        return self.reference.active()

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
    def _measure(self, policy: Any, context: Any, action: Action) -> Likelihood:
        """log pi_t of whoever drew, and log pi_0 where the KL weighs, by the training model."""
        there = action.mask.any(-1)
        batch = Batch(context, action, Labels(torch.zeros_like(there, dtype=torch.long), there))
        # How far a reference has moved is not worth a pass where it costs nothing.
        asks = self.settings.kl_weight > 0 or (self.start is not None and not self.settings.from_reference)
        needs = frozenset({"log_prob", "ref_log_prob"} if asks else {"log_prob"})
        start, parts = self.start if asks else None, self._parts(batch.num_contexts)
        with self._drawer(policy) as drawer:
            found = [drawer.likelihood(batch.select(part), start, needs) for part in parts]
        if len(found) == 1:
            return found[0].detach()
        return Likelihood(**{name: torch.cat([getattr(part, name) for part in found]) for name in sorted(needs)})

    def _shaped(self, context: Any, action: Action, score: Tensor, present: Tensor, found: Likelihood) -> Batch:
        """The collected batch, with the KL's price taken off its rewards."""
        mask = action.mask
        steps = on_last_step(score, mask)
        if self.settings.kl_weight:
            assert found.ref_log_prob is not None
            steps = steps - self.settings.kl_weight * (found.log_prob - found.ref_log_prob) * mask
        value = torch.where(present, steps.sum(-1), 0.0)
        # What was given by a data set is not pi_t's own.
        own = torch.arange(mask.shape[1], device=mask.device) < self.settings.num_samples
        on_policy = own.expand(present.shape).clone()
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

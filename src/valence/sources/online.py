"""Fresh completions as a source of batches: sample, judge, and measure who drew them.

`next` takes the next prompts, draws K completions of each from the policy or from the reference, has them judged, and
measures log pi_t of every completion. With a KL weight gamma the reward is shaped towards the initial policy pi_0,

    r - gamma (log pi_t(y|x) - log pi_0(y|x)),

and each part of the KL falls on its own step. A completion that does not end within its length has a fixed reward in
place of r. Source: REBEL paper, appendix H.1.4.

How prompts become contexts and how completions are drawn is the work of a `Modality`: `TextModality` in
`valence.sources.text`, `ImageModality` in `valence.sources.images`.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from valence.errors import UserError
from valence.feedback.advantages import on_last_step
from valence.feedback.conversions import has_spread, reward_statistics
from valence.feedback.running import RunningStandard
from valence.protocols import Policy, Reference
from valence.rewards.ensemble import RewardFn
from valence.sources.modality import Drawn, Modality, OnlineSettings
from valence.sources.prompts import EncodedPrompt, ask, plain_prompt
from valence.sources.shuffle import ShuffledSource
from valence.types import Action, Batch, Feedback, Labels, Likelihood, Rewards

Convert = Callable[[Rewards], Feedback]


class OnlineSource(ShuffledSource):
    """See the page's top.

    Args:
        prompts: what is completed; each epoch in a fresh order.
        judge: gives a score for each completion, or None where it has none.
        settings: how completions are drawn and judged.
        modality: the kind of completions.
        initial_policy: pi_0, of the KL weight; may be None if that is 0.
        reference: draws the completions under `from_reference`.
        convert: turns rewards into the feedback that the objective takes; None keeps them.
        standard: standardises rewards prompt by prompt, before the KL weight; `figures` hold them as the judge gave
            them. Its memory is part of the source's state.
        seed: of order and sampling.

    `no_spread` counts the batches, of `batches`, in which no prompt has two completions of different reward.
    Raises:
        ValueError: no prompts, a KL weight without pi_0, or `from_reference` without a reference.
    """

    what = "prompts"

    def __init__(
        self, prompts: Sequence[EncodedPrompt], judge: RewardFn, settings: OnlineSettings, modality: Modality, *,
        initial_policy: Reference | None = None, reference: Reference | None = None, convert: Convert | None = None,
        standard: RunningStandard | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if not prompts:
            raise ValueError("an online source needs at least one prompt")
        if settings.kl_weight and initial_policy is None:
            raise ValueError("a KL weight needs the initial policy: give `initial_policy`")
        if settings.from_reference and reference is None:
            raise ValueError("`from_reference` needs a `reference` to draw from")
        super().__init__(len(prompts), batch_size=settings.batch_size, seed=seed)
        self.prompts, self.judge, self.settings, self.modality = prompts, judge, settings, modality
        self.initial_policy, self.reference = initial_policy, reference
        self.convert, self.standard = convert, standard
        self.unit, self.generator = modality.unit, torch.Generator().manual_seed(seed)
        self.batches = self.no_spread = 0

    def next(self, policy: Policy) -> Batch:
        """Sample and judge. `figures` then hold the batch's mean reward, KL and counts."""
        began = self.state_dict()
        try:
            return self._collect(policy)
        except UserError:
            # The judge is gone: a resumed run must see the same prompts and draws.
            self.load_state_dict(began)
            raise

    def _collect(self, policy: Policy) -> Batch:
        prompts = self._next_prompts()
        context = self.modality.context(policy, prompts)
        with torch.no_grad(), self._collector(policy) as collector:
            drawn = self.modality.draw(collector, context, prompts, self.settings, self.generator)
        action, ended = drawn.action, drawn.ended
        scores = self._judged(prompts, action)
        if self.settings.unfinished_reward is not None and ended is not None:
            scores = torch.where(ended | scores.isnan(), scores, self.settings.unfinished_reward)
        present = ~scores.isnan() & action.mask.any(-1)
        scores = torch.where(present, scores, 0.0)
        measured = self._measure(policy, context, drawn)
        value = scores
        if self.standard is not None:
            value = self.standard([plain_prompt(row) for row in prompts], scores, present)
        steps = on_last_step(value, action.mask)
        if self.settings.kl_weight:
            assert measured.ref_log_prob is not None
            steps = steps - self.settings.kl_weight * (measured.log_prob - measured.ref_log_prob) * action.mask
        shaped = Rewards(torch.where(present, steps.sum(-1), 0.0), present)
        # The others are the data set's.
        own = torch.arange(present.shape[1], device=present.device).expand(present.shape) < self.settings.num_samples
        self._report(scores, shaped, own, drawn, measured)
        feedback = shaped if self.convert is None else self.convert(shaped)
        # An action without feedback takes no part in the update, so its steps are masked.
        masked = replace(action, mask=action.mask & feedback.present[..., None])
        old_log_prob = measured.log_prob * action.mask
        return Batch(context, masked, feedback, old_log_prob=old_log_prob, on_policy=own, step_reward=steps)

    def _next_prompts(self) -> list[EncodedPrompt]:
        picks: list[int] = []
        while len(picks) < self.batch_size:
            picks += self.take(self.batch_size - len(picks)).tolist()
        return [self.prompts[pick] for pick in picks]

    def _collector(self, policy: Policy) -> contextlib.AbstractContextManager[Policy]:
        """pi_t: the policy as it is now, or the reference."""
        if not self.settings.from_reference:
            return contextlib.nullcontext(policy)
        assert self.reference is not None
        return self.reference.active()

    def _judged(self, prompts: Sequence[EncodedPrompt], action: Action) -> Float[Tensor, "N K"]:
        """The score of each completion, NaN where the judge has none."""
        assert action.output is not None
        there, output = action.mask.any(-1), action.output
        places = [(n, k) for n, row in enumerate(output) for k in range(len(row)) if there[n, k]]
        scores = ask(self.judge, [prompts[n] for n, _ in places], [output[n][k] for n, k in places])
        table = torch.full(there.shape, math.nan)
        for (n, k), score in zip(places, scores, strict=True):
            if score is not None:
                table[n, k] = score
        self.num_units = len(places)
        return table.to(action.mask.device)

    @torch.no_grad()
    def _measure(self, policy: Policy, context: Any, drawn: Drawn) -> Likelihood:
        """log pi_t, and log pi_0 where the KL weight or a report needs it, by the training model."""
        action, initial = drawn.action, self.initial_policy
        if drawn.log_prob is not None and not self.settings.kl_weight:
            return Likelihood(log_prob=drawn.log_prob)
        # Without a KL weight, a reference's distance from pi_0 is not worth a pass.
        if not self.settings.kl_weight and self.settings.from_reference:
            initial = None
        there = action.mask.any(-1)
        batch = Batch(context, action, Labels(torch.zeros_like(there, dtype=torch.long), there))
        needs = frozenset({"log_prob"} if initial is None else {"log_prob", "ref_log_prob"})
        parts = self.settings.parts(batch.num_contexts)
        with self._collector(policy) as collector:
            pieces = [collector.likelihood(batch.select(part), initial, needs).detach() for part in parts]
        return Likelihood(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in sorted(needs)})

    def _report(self, scores: Tensor, shaped: Rewards, own: Tensor, drawn: Drawn, measured: Likelihood) -> None:
        """Set `figures`, which describe the completions that pi_t drew."""
        mask, judged = drawn.action.mask, shaped.present & own
        self.figures = {"unjudged": float((mask.any(-1) & own).sum() - judged.sum())}
        self.batches += 1
        self.no_spread += int(not bool(has_spread(Rewards(scores, judged)).any()))
        if not bool(judged.any()):
            return
        mean, deviation = reward_statistics(Rewards(scores, judged))
        self.figures |= {
            "reward": mean, "reward_std": deviation, "shaped_reward": shaped.value[judged].mean().item()
        }  # fmt: skip
        if drawn.ended is not None:
            self.figures["ended"] = drawn.ended[judged].float().mean().item()
            self.figures["length"] = mask.sum(-1)[judged].float().mean().item()
        if measured.ref_log_prob is not None and not self.settings.from_reference:
            gap = (measured.log_prob - measured.ref_log_prob).sum(-1)
            self.figures["kl_policy_initial"] = gap[judged].mean().item()

    def content(self) -> Iterable[bytes]:
        rows = (f"{r.ids}{r.prompt}{sorted(r.columns.items())}{r.given_completions}" for r in self.prompts)
        return ["\n".join(rows).encode()]

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"generator": self.generator.get_state()}
        return state if self.standard is None else state | {"standard": self.standard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state is of other prompts."""
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        if self.standard is not None:
            self.standard.load_state_dict(state["standard"])

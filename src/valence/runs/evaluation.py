"""The figures of a run, before, during and after."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from valence.data.collate import EncodedGroup
from valence.evaluation import language as measures
from valence.policies.language import LanguagePolicy
from valence.protocols import Reference
from valence.runs.config import RunConfig


@dataclass(frozen=True)
class Sampled:
    """Fresh samples of the policy after `step` optimizer steps.

    Args:
        picked: which prompt each is of.
        texts: the completions, or images.
        before: those of the policy as it began, of the same prompts.
        kl: KL(pi || pi_ref) along each, nats.
    """

    step: int
    picked: Sequence[int]
    texts: Sequence[Any]
    before: Sequence[Any]
    kl: Sequence[float]


JudgeSamples = Callable[[Sampled], dict[str, float]]


class Evaluation:
    """Always on the same prompts, rows and seeds, so that figures can be compared along a run.

    Args:
        prompts: those of which some are completed.
        rows: the first of the prompts with their held-out feedback, where there is any.
        judge: samples -> figures, for a run that has a reward.
    """

    card = "transformers"

    def __init__(
        self, policy: LanguagePolicy, reference: Reference | None, prompts: Sequence[list[int]], *, config: RunConfig,
        seed: int, rows: Sequence[EncodedGroup] = (), judge: JudgeSamples | None = None,
    ) -> None:  # fmt: skip
        assert reference is not None
        self.policy, self.reference, self.judge = policy, reference, judge
        # A file is often sorted by label: take a random part of it, not the first.
        order = list(range(len(prompts)))
        random.Random(seed).shuffle(order)
        self.rows = [rows[place] for place in order if place < len(rows)][: config.eval_rows]
        self.picked = [order[place % len(order)] for place in range(config.eval_samples)]
        self.prompts = [prompts[place] for place in self.picked]
        self.seed = seed + 7919
        self.prose = measures.ordinary_text()
        with self.reference.active() as base:
            self.before_texts, self.before_chunks = measures.sample_texts(
                base, self.prompts, seed=self.seed, pad=policy.pad_token_id
            )
        self.texts = self.before_texts

    def __call__(self, step: int) -> dict[str, float]:
        pad = self.policy.pad_token_id
        self.texts, chunks = measures.sample_texts(self.policy, self.prompts, seed=self.seed, pad=pad)
        far = measures.sample_kls(self.policy, self.reference, chunks, "policy_kl")
        figures = {
            "kl_policy_ref": float(far.mean()),
            "kl_ref_policy": measures.sampled_kl(self.policy, self.reference, self.before_chunks, "ref_kl"),
            "ordinary_text_nll": measures.text_nll(self.policy, self.prose),
            "distinct_2": measures.distinct_n(self.texts),
            "mean_words": measures.mean_words(self.texts),
            "truncated": measures.truncated_share(chunks, self.policy.end_token_ids),
        }
        if self.rows:
            accuracy = measures.implicit_reward_accuracy(self.policy, self.reference, self.rows, pad=pad)
            if accuracy is not None:
                figures["implicit_reward_accuracy"] = accuracy
        if self.judge is not None:
            figures = self.judge(Sampled(step, self.picked, self.texts, self.before_texts, far.tolist())) | figures
        return figures

    def kl(self, step: int) -> float:
        """KL(pi || pi_ref) on fresh samples, for the budget."""
        _, chunks = measures.sample_texts(
            self.policy, self.prompts, seed=self.seed + step, pad=self.policy.pad_token_id
        )
        return measures.sampled_kl(self.policy, self.reference, chunks, "policy_kl")

    def samples(self) -> list[dict[str, str]]:
        """Before and after on the evaluation's prompts, as text."""
        tokenizer = self.policy.tokenizer
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in self.prompts]
        return [
            {"prompt": prompt, "before": before, "after": after}
            for prompt, before, after in zip(prompts, self.before_texts, self.texts, strict=True)
        ]

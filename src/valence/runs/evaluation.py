"""The figures of a run, before, during and after."""

from __future__ import annotations

import random

from valence.evaluation import language as measures
from valence.policies.language import LanguagePolicy
from valence.runs.config import AlignConfig
from valence.runs.data import Encoded
from valence.training.learner import Learner


class Evaluation:
    """Always on the same held-out rows, prompts and seeds, so that figures can be compared along a run."""

    def __init__(self, config: AlignConfig, policy: LanguagePolicy, learner: Learner, data: Encoded) -> None:
        self.policy, self.config = policy, config
        assert learner.reference is not None
        self.reference = learner.reference
        # A file is often sorted by label: take a random part of the held-out rows, not the first.
        pool = list(data.heldout or data.train)
        random.Random(config.train.seed).shuffle(pool)
        self.rows = pool[: config.run.eval_rows] if data.heldout else []
        count = config.run.eval_samples
        self.picked = [pool[place % len(pool)] for place in range(count)]
        self.prompts = [row.prompt for row in self.picked]
        self.seed = config.train.seed + 7919
        self.prose = measures.ordinary_text()
        with self.reference.active() as base:
            self.before_texts, self.before_chunks = measures.sample_texts(
                base, self.prompts, seed=self.seed, pad=policy.pad_token_id
            )
        self.texts = self.before_texts

    def __call__(self, step: int) -> dict[str, float]:
        pad = self.policy.pad_token_id
        self.texts, chunks = measures.sample_texts(self.policy, self.prompts, seed=self.seed, pad=pad)
        figures = {
            "kl_policy_ref": measures.sampled_kl(self.policy, self.reference, chunks, "policy_kl"),
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
        prompts = [tokenizer.decode(row.prompt, skip_special_tokens=True) for row in self.picked]
        return [
            {"prompt": prompt, "before": before, "after": after}
            for prompt, before, after in zip(prompts, self.before_texts, self.texts, strict=True)
        ]

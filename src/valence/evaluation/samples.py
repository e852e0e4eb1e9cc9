"""The evaluation of a language model: the same prompts, held-out rows and seed before, during and after a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from valence.data.collate import EncodedGroup
from valence.evaluation import language as measures
from valence.policies.language import LanguagePolicy
from valence.protocols import Reference


@dataclass(frozen=True)
class Samples:
    """Fresh samples of the policy after `step` optimizer steps.

    Args:
        prompt_index: the index of each sample's prompt.
        outputs: the completions, or images.
        initial_outputs: those of the initial policy, for the same prompts.
        kl: KL(pi || pi_ref) along each sample, nats.
    """

    step: int
    prompt_index: Sequence[int]
    outputs: Sequence[Any]
    initial_outputs: Sequence[Any]
    kl: Sequence[float]


JudgeSamples = Callable[[Samples], dict[str, float]]


class Evaluation:
    """Evaluates a language model; its figures can be compared along a run.

    Args:
        prompts: token ids of the prompts to choose from.
        num_samples: completions per evaluation; the prompts are used again where there are fewer.
        num_rows: most held-out rows to measure the accuracy of the implicit reward on.
        seed: seed of the choice of prompts and of sampling.
        rows: held-out feedback; row i belongs to prompt i, and there may be fewer rows than prompts.
        judge: samples -> figures, for a run that has a reward.
    """

    card = "transformers"

    def __init__(
        self, policy: LanguagePolicy, reference: Reference, prompts: Sequence[list[int]], *, num_samples: int,
        num_rows: int, seed: int, rows: Sequence[EncodedGroup] = (), judge: JudgeSamples = lambda samples: {},
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.judge = policy, reference, judge
        # A file is often sorted by label: take a random part of it, not the first.
        order = list(range(len(prompts)))
        random.Random(seed).shuffle(order)
        self.rows = [rows[place] for place in [place for place in order if place < len(rows)][:num_rows]]
        self.prompt_index = [order[place % len(order)] for place in range(num_samples)]
        self.prompts = [prompts[place] for place in self.prompt_index]
        self.seed = seed + 7919
        self.prose = measures.ordinary_text()
        with reference.active() as initial:
            self.initial_texts, self.initial_chunks = measures.sample_texts(initial, self.prompts, seed=self.seed)
        self.texts = self.initial_texts

    def __call__(self, step: int) -> dict[str, float]:
        self.texts, chunks = measures.sample_texts(self.policy, self.prompts, seed=self.seed)
        kl = measures.sample_kls(self.policy, self.reference, chunks, "policy_kl")
        figures = {
            "kl_policy_ref": float(kl.mean()),
            "kl_ref_policy": measures.sampled_kl(self.policy, self.reference, self.initial_chunks, "ref_kl"),
            "ordinary_text_nll": measures.text_nll(self.policy, self.prose),
            "distinct_2": measures.distinct_n(self.texts),
            "mean_words": measures.mean_words(self.texts),
            "truncated": measures.truncated_share(chunks, self.policy.end_token_ids),
        }
        rows = self.rows
        accuracy = measures.implicit_reward_accuracy(self.policy, self.reference, rows) if rows else None
        if accuracy is not None:
            figures["implicit_reward_accuracy"] = accuracy
        return self.judge(Samples(step, self.prompt_index, self.texts, self.initial_texts, kl.tolist())) | figures

    def kl(self, step: int) -> float:
        """KL(pi || pi_ref) on fresh samples, nats per sample."""
        _, chunks = measures.sample_texts(self.policy, self.prompts, seed=self.seed + step)
        return measures.sampled_kl(self.policy, self.reference, chunks, "policy_kl")

    def samples(self) -> list[dict[str, str]]:
        """Each prompt with its completion before training and at the last evaluation."""
        tokenizer = self.policy.tokenizer
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in self.prompts]
        rows = zip(prompts, self.initial_texts, self.texts, strict=True)
        return [dict(zip(("prompt", "before", "after"), row, strict=True)) for row in rows]

    def section(self, last_step: int) -> str:
        """More of the report as HTML: nothing, since the report shows `samples()`."""
        return ""

"""The figures of a run, by hand and against direct computations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import helpers
from helpers import END, PAD, START, context_of
from valence.data.collate import EncodedGroup, pad_actions
from valence.data.groups import Group
from valence.evaluation import language as measures
from valence.policies.language import LanguagePolicy
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.types import Batch, Likelihood

DRIFT = {5: 0.0, 6: 0.0, 7: 1.0, 8: -1.0, 9: 2.0}
"""Completion's first token -> log pi / pi_ref of it, under the hand-made policy."""


class Drifted(LanguagePolicy):
    """A hand-made policy: its log-ratio is the table's."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1), helpers.word_tokenizer())

    def likelihood(self, batch: Batch, reference: Any, needs: frozenset[str]) -> Likelihood:
        first = batch.action.steps[..., 0]
        drift = torch.tensor([DRIFT.get(token, 0.0) for token in range(16)])[first]
        log_prob = torch.zeros(batch.action.mask.shape)
        log_prob[..., 0] = -3.0 + drift
        other = torch.zeros(batch.action.mask.shape)
        other[..., 0] = -3.0
        mask = batch.action.mask
        return Likelihood(log_prob * mask, ref_log_prob=other * mask, mask=mask)


class Unused:
    """A reference that the hand-made policy does not use."""

    def active(self) -> Any:
        raise NotImplementedError

    def after_step(self, policy: Any, step: int) -> None:
        raise NotImplementedError

    def trainable(self) -> dict[str, Any]:
        raise NotImplementedError


def row(tokens: Sequence[int], **feedback: Any) -> EncodedGroup:
    return EncodedGroup(
        [4], [[token, END] for token in tokens], Group("p", tuple(str(token) for token in tokens), **feedback)
    )


def accuracy(*rows: EncodedGroup) -> float | None:
    return measures.implicit_reward_accuracy(Drifted(), Unused(), rows)


class TestImplicitRewardAccuracy:
    def test_pairs(self) -> None:
        right, wrong, tie = (
            row([7, 5], wins=((0, 1, 1.0, None),)),
            row([8, 5], wins=((0, 1, 0.9, None),)),
            row([5, 6], wins=((0, 1, 1.0, None),)),
        )
        assert accuracy(right) == 1.0 and accuracy(wrong) == 0.0 and accuracy(tie) == 0.5
        assert accuracy(right, wrong, tie) == pytest.approx(0.5)
        assert accuracy(right, right, wrong, tie) == pytest.approx(2.5 / 4)

    def test_a_pair_written_the_other_way_round(self) -> None:
        assert accuracy(row([5, 7], wins=((1, 0, 0.8, None),))) == 1.0

    def test_a_pair_that_is_a_tie_itself_is_not_counted(self) -> None:
        assert accuracy(row([7, 8, 5], wins=((0, 1, 0.5, None), (2, 1, 1.0, None)))) == 1.0

    def test_rewards_of_one_prompt(self) -> None:
        # 9 > 7 > 8 in log-ratio: of (9, 7), (9, 8), (7, 8) two are ranked as the rewards are.
        assert accuracy(row([9, 7, 8], reward=(3.0, 1.0, 2.0))) == pytest.approx(2 / 3)
        # Equal rewards say nothing.
        assert accuracy(row([9, 7, 8], reward=(3.0, 1.0, 1.0))) == 1.0
        # Rows of one completion stand beside those with several, and do not count.
        assert accuracy(row([8], reward=(9.0,)), row([9, 7], reward=(2.0, 1.0))) == 1.0

    def test_labels_are_compared_across_prompts(self) -> None:
        good, bad = [row([token], sign=(1,)) for token in (9, 5)], [row([token], sign=(-1,)) for token in (7, 6)]
        # 9 beats both; 5 loses to 7 and ties with 6.
        assert accuracy(*good, *bad) == pytest.approx((2 + 0 + 0.5) / 4)
        # Unlabelled rows do not count.
        assert accuracy(*good, *bad, row([8], sign=(0,))) == pytest.approx(2.5 / 4)

    def test_single_rewards_are_compared_across_prompts(self) -> None:
        # The mean is 4: 6 and 5 are above, 2 and 3 below; log-ratios 2, -1 against 1, 0.
        rows = [row([9], reward=(6.0,)), row([8], reward=(5.0,)), row([7], reward=(2.0,)), row([5], reward=(3.0,))]
        assert accuracy(*rows) == pytest.approx(2 / 4)

    @pytest.mark.parametrize("chunk", [1, 2, 3])
    def test_it_does_not_depend_on_how_many_are_measured_together(
        self, chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rewards = [row([token], reward=(float(value),)) for token, value in zip((9, 7, 5, 8, 6), range(5), strict=True)]
        labels = [row([token], sign=(sign,)) for token, sign in zip((9, 7, 5, 8, 6), (1, 1, -1, -1, 1), strict=True)]
        whole = accuracy(*rewards), accuracy(*labels)
        monkeypatch.setattr(measures, "CHUNK", chunk)
        assert (accuracy(*rewards), accuracy(*labels)) == whole

    def test_one_side_alone_has_none(self) -> None:
        assert accuracy(row([9], sign=(1,)), row([7], sign=(1,))) is None
        assert accuracy(row([9], reward=(0.1,)), row([7], reward=(0.1,)), row([8], reward=(0.1,))) is None
        assert accuracy(row([9], sign=(0,))) is None

    def test_of_a_real_policy(self) -> None:
        """Raise the log-probability of the better completions by training on them: the accuracy goes to 1."""
        policy = helpers.policy("llama")
        reference = FrozenCopy(policy)
        rows = [
            EncodedGroup([4, n + 5], [[5, 6, END], [7, 8, END]], Group("p", ("a", "b"), wins=((0, 1, 1.0, None),)))
            for n in range(4)
        ]
        assert measures.implicit_reward_accuracy(policy, reference, rows) == 0.5
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
        from valence.data.collate import collate

        batch = collate(rows, pad=PAD)
        for _ in range(5):
            total = policy.likelihood(batch, None, frozenset({"log_prob"})).total().log_prob
            (total[:, 1] - total[:, 0]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert measures.implicit_reward_accuracy(policy, reference, rows) == 1.0


class TestSampledKl:
    @pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
    def test_policy_and_reference_alike_have_none(self, kind: str) -> None:
        policy = helpers.policy(kind)
        reference = FrozenCopy(policy)
        _, chunks = measures.sample_texts(policy, [[4], [5, 6, 7], [8, 9]], seed=0)
        for name in ("policy_kl", "ref_kl"):
            assert abs(measures.sampled_kl(policy, reference, chunks, name)) < 1e-5

    def test_it_estimates_the_kl_of_whole_completions(self) -> None:
        """Against the sum over all completions, on enough samples that the error is known."""
        policy = helpers.policy("llama", 5, max_new_tokens=2)
        reference = FrozenCopy(policy)
        helpers.shake(policy, size=0.2)
        prompt = [3, 4]
        completions = list(helpers.every_completion(5, 2))
        batch = helpers.as_batch(context_of(prompt), pad_actions([completions], PAD))
        with torch.no_grad():
            total = policy.likelihood(batch, reference, frozenset({"log_prob", "ref_log_prob"})).total()
        ours, theirs = total.log_prob[0].double(), total.ref_log_prob[0].double()
        exact = {
            "policy_kl": float((ours.exp() * (ours - theirs)).sum()),
            "ref_kl": float((theirs.exp() * (theirs - ours)).sum()),
        }
        assert min(exact.values()) > 0.02 and abs(exact["policy_kl"] - exact["ref_kl"]) > 1e-3
        with reference.active() as base:
            for name, drawer in (("policy_kl", policy), ("ref_kl", base)):
                _, chunks = measures.sample_texts(drawer, [prompt] * 1200, seed=1)
                assert measures.sampled_kl(policy, reference, chunks, name) == pytest.approx(exact[name], rel=0.1)

    def test_adapters_switched_off_are_a_reference_too(self) -> None:
        policy = helpers.policy("llama", lora=True)
        helpers.shake(policy, size=0.5)
        reference = AdaptersOff(policy)
        _, chunks = measures.sample_texts(policy, [[4], [5, 6]], seed=0)
        assert measures.sampled_kl(policy, reference, chunks, "policy_kl") > 1e-4


class TestSamples:
    def test_one_completion_a_prompt_in_order_by_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = helpers.policy("llama")
        prompts = [[4 + n % 5] * (1 + n % 3) for n in range(7)]
        texts, chunks = measures.sample_texts(policy, prompts, seed=3)
        assert len(texts) == 7 and len(chunks) == 1
        assert measures.sample_texts(policy, prompts, seed=3)[0] == texts
        assert measures.sample_texts(policy, prompts, seed=4)[0] != texts
        monkeypatch.setattr(measures, "CHUNK", 3)
        texts, chunks = measures.sample_texts(policy, prompts, seed=3)
        assert len(texts) == 7 and [len(context.ids) for context, _ in chunks] == [3, 3, 1]
        drawn = [
            policy.decode(steps[mask])
            for _, action in chunks
            for steps, mask in zip(action.steps[:, 0], action.mask[:, 0], strict=True)
        ]
        assert drawn == texts
        assert [
            context.ids[n][context.mask[n]].tolist() for context, _ in chunks for n in range(len(context.ids))
        ] == prompts


class TestTextNll:
    TEXTS = ("a b c d", "e", "f g h a b c d e f g")

    def test_causal(self) -> None:
        policy = helpers.policy("llama", temperature=1.0)
        total, count = 0.0, 0
        for text in self.TEXTS:
            ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
            logits = helpers.slow_log_probs(policy, [START], ids)
            total -= sum(float(step[token]) for step, token in zip(logits, ids, strict=True))
            count += len(ids)
        assert count == 15
        assert measures.text_nll(policy, self.TEXTS) == pytest.approx(total / count, rel=1e-5)
        assert measures.text_nll(policy, [*self.TEXTS, ""]) == pytest.approx(total / count, rel=1e-5)

    def test_long_texts_are_cut(self) -> None:
        policy = helpers.policy("llama")
        assert measures.text_nll(policy, ["a b c d"], max_tokens=2) == pytest.approx(
            measures.text_nll(policy, ["a b"]), rel=1e-6
        )

    def test_encoder_decoder(self) -> None:
        """The first half is the prompt, the second the completion."""
        policy = helpers.policy("t5")
        total, count = 0.0, 0
        for text in self.TEXTS:
            ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
            half = len(ids) // 2
            logits = helpers.slow_log_probs(policy, ids[:half] or [START], ids[half:])
            total -= sum(float(step[token]) for step, token in zip(logits, ids[half:], strict=True))
            count += len(ids) - half
        assert measures.text_nll(policy, self.TEXTS) == pytest.approx(total / count, rel=1e-5)

    def test_a_uniform_policy_has_the_log_of_its_vocabulary(self) -> None:
        policy = helpers.policy("t5-untied")
        with torch.no_grad():
            policy.core.lm_head.weight.zero_()
        assert measures.text_nll(policy, self.TEXTS) == pytest.approx(math.log(16), rel=1e-6)

    def test_there_is_ordinary_text(self) -> None:
        text = measures.ordinary_text()
        assert len(text) > 10 and all(block == block.strip() and block for block in text)


class TestText:
    def test_distinct_n_by_hand(self) -> None:
        # Pairs: (a, b), (b, a), (a, b) and (a, b): two different ones of four.
        assert measures.distinct_n(["a b a b", "a b"]) == pytest.approx(2 / 4)
        assert measures.distinct_n(["a b a b", "a b"], n=1) == pytest.approx(2 / 6)
        assert measures.distinct_n(["a b c"], n=3) == 1.0
        # No pair reaches across two texts, and there may be none at all.
        assert measures.distinct_n(["a", "b"]) == 0.0
        assert measures.distinct_n([]) == 0.0

    def test_mean_words_by_hand(self) -> None:
        assert measures.mean_words(["a b  c", "", "d"]) == pytest.approx(4 / 3)
        assert measures.mean_words([]) == 0.0

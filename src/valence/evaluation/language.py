"""Figures of an aligned language model: what it learned, how far it moved from the reference, what it lost.

A KL here is the mean over fresh samples of the sum of each token's exact KL over the vocabulary. It is unbiased (PMPO
paper, Eq. 17) because the prefixes are drawn from the policy that the KL names first.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from jinja2 import TemplateError
from torch import Tensor

from valence.data.collate import EncodedGroup, Encoder, collate, move, pad_actions, pad_left
from valence.data.records import Record
from valence.feedback.conversions import rewards_to_preferences, signs
from valence.policies.language import LanguagePolicy
from valence.protocols import Policy, Reference
from valence.types import Action, Batch, Feedback, Labels, Preferences, Rewards

Drawn = tuple[Any, Action]
"""Contexts and the actions drawn in them."""
CHUNK = 64
"""Sequences that are sampled or measured together."""


def as_batch(context: Any, action: Action) -> Batch:
    """Actions without feedback as a batch."""
    present = action.mask.any(-1)
    return Batch(context, action, Labels(torch.zeros_like(present, dtype=torch.long), present))


@torch.no_grad()
def sample_texts(policy: LanguagePolicy, prompts: Sequence[list[int]], *, seed: int) -> tuple[list[str], list[Drawn]]:
    """Draw one completion for each prompt: (texts, their (context, action) in chunks of `CHUNK`)."""
    generator = torch.Generator().manual_seed(seed)
    texts, chunks = [], []
    for first in range(0, len(prompts), CHUNK):
        context = move(pad_left(prompts[first : first + CHUNK], policy.pad_token_id), policy.device)
        action = policy.sample(context, 1, generator)
        assert action.output is not None
        texts += [row[0] for row in action.output]
        chunks.append((context, action))
    return texts, chunks


def complete_records(
    policy: LanguagePolicy, records: Sequence[Record], encoder: Encoder, *, room: int, seed: int
) -> tuple[list[str], set[int]]:
    """(a completion of each record's prompt, the indices of the prompts that the model can be given).

    Args:
        encoder: turns prompts into token ids of the policy's model.
        room: tokens that a prompt may have.
    """
    prompts: list[list[int] | None] = []
    for record in records:
        try:
            prompts.append(encoder.prompt(record.prompt, record.completions))
        except TemplateError:
            prompts.append(None)
    fits = {place for place, row in enumerate(prompts) if row is not None and len(row) <= room}
    return sample_texts(policy, [(row or [policy.pad_token_id])[:room] for row in prompts], seed=seed)[0], fits


@torch.no_grad()
def sample_kls(policy: Policy, reference: Reference, chunks: Sequence[Drawn], name: str) -> Float[Tensor, " samples"]:
    """KL along each sampled sequence, nats.

    Args:
        chunks: samples of the policy for "policy_kl", of the reference for "ref_kl"; see `sample_texts`.
        name: "policy_kl" for KL(pi || pi_ref), "ref_kl" for KL(pi_ref || pi).
    """
    needs = frozenset({"log_prob", name})
    totals = (policy.likelihood(as_batch(*chunk), reference, needs).total() for chunk in chunks)
    return torch.cat([getattr(total, name).flatten() for total in totals])


def sampled_kl(policy: Policy, reference: Reference, chunks: Sequence[Drawn], name: str) -> float:
    """Mean KL per sequence, nats; see `sample_kls`."""
    return float(sample_kls(policy, reference, chunks, name).mean())


@torch.no_grad()
def implicit_reward_accuracy(
    policy: LanguagePolicy, reference: Reference, rows: Sequence[EncodedGroup]
) -> float | None:
    """How often log pi/pi_ref ranks a better held-out completion above a worse one; a tie counts half.

    Completions of one context are compared where any context has a better and a worse one (pairs, rankings, several
    scores). Otherwise all better rows are compared with all worse rows (the area under the ROC curve). None where
    there is nothing to compare.
    """
    within, ratios, sides, needs = [], [], [], frozenset({"log_prob", "ref_log_prob"})
    for first in range(0, len(rows), CHUNK):
        batch = collate(rows[first : first + CHUNK], pad=policy.pad_token_id)
        total = policy.likelihood(move(batch, policy.device), reference, needs).total()
        assert total.ref_log_prob is not None
        ratio = (total.log_prob - total.ref_log_prob).cpu()
        feedback = batch.feedback
        within += _ordered_gaps(ratio, feedback)
        side = feedback.value if isinstance(feedback, Rewards) else signs(feedback)
        ratios.append(ratio[batch.present])
        sides.append(side[batch.present].double())
    if within:
        return _share_positive(torch.stack(within))
    ratio, side = torch.cat(ratios), torch.cat(sides)
    # A reward is compared with the mean over all rows, not over its own chunk.
    middle = side.mean() if isinstance(feedback, Rewards) else 0.0
    gaps = ratio[side > middle][:, None] - ratio[side < middle][None, :]
    return _share_positive(gaps) if gaps.numel() else None


def _ordered_gaps(ratio: Tensor, feedback: Feedback) -> list[Tensor]:
    """Log-ratio of the better minus that of the worse completion, for every ordered pair within a context."""
    if isinstance(feedback, Labels):
        return []
    pairs = feedback if isinstance(feedback, Preferences) else rewards_to_preferences(feedback)
    beats = pairs.observed & (pairs.win > 0.5)
    return [ratio[n, i] - ratio[n, j] for n, i, j in beats.nonzero().tolist()]


def _share_positive(gaps: Tensor) -> float:
    return float(((gaps > 0).double() + 0.5 * (gaps == 0).double()).mean())


def ordinary_text() -> list[str]:
    """Paragraphs of plain English prose (public domain), used only to measure what alignment costs."""
    text = (files("valence") / "assets" / "ordinary-text" / "prose.txt").read_text(encoding="utf-8")
    return [block.strip() for block in text.split("\n\n") if block.strip()]


@torch.no_grad()
def text_nll(policy: LanguagePolicy, texts: Sequence[str], *, max_tokens: int = 192) -> float:
    """Mean negative log-likelihood of plain text, nats per token, by teacher forcing from the start token.

    For an encoder-decoder model the first half of a text is the prompt and the second half the completion.

    Args:
        max_tokens: longer texts are cut to this many tokens.
    """
    tokenizer = policy.tokenizer
    start_token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    contexts, actions = [], []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]
        half = len(ids) // 2 if policy.encoder_decoder else 0
        if len(ids) > half:
            contexts.append(ids[:half] or [start_token])
            actions.append([ids[half:]])
    total, count = 0.0, 0
    for first in range(0, len(contexts), CHUNK // 4):
        rows, pad = slice(first, first + CHUNK // 4), policy.pad_token_id
        batch = move(as_batch(pad_left(contexts[rows], pad), pad_actions(actions[rows], pad)), policy.device)
        total -= float(policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob.sum())
        count += int(batch.action.mask.sum())
    return total / count


def truncated_share(chunks: Sequence[Drawn], end_token_ids: Sequence[int]) -> float:
    """Share of sampled completions that were cut at the length limit; their KLs end there too."""
    ids = torch.tensor(list(end_token_ids))
    ended = [(torch.isin(action.steps.cpu(), ids) & action.mask.cpu()).any(-1).flatten() for _, action in chunks]
    return 1 - int(torch.cat(ended).sum()) / len(torch.cat(ended))


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Share of distinct n-grams of words among all n-grams of `texts`; 0 where there are none.

    It falls with the amount of text: compare sets of equally many samples.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def mean_words(texts: Sequence[str]) -> float:
    """Mean length in words."""
    return sum(len(text.split()) for text in texts) / max(1, len(texts))

"""Tokens a second of whole offline steps on the small model, every method on the same rows, in one run.

Beside them a naive PMPO step: plain torch, one padded batch, full logits of policy and reference. Timings on a shared
machine are noisy: read the ratios. (Peers and the fused head come with the fast path; see docs/decisions.md.)
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import torch

from valence.data.collate import Encoder
from valence.data.formats import load_feedback
from valence.data.groups import groups_for
from valence.policies.language import present_rows
from valence.policies.loading import load_language_policy
from valence.reproduce.thumbs_data import read_sentences, split_sentences
from valence.runs.config import MethodConfig
from valence.runs.methods import make_critic, make_objective, prepare_groups, takes
from valence.sources.offline import OfflineSource
from valence.training.learner import Learner, make_optimizer
from valence.training.reference import FrozenCopy
from valence.types import Labels

STEPS, BATCH = 8, 32


def records():
    """A few hundred thumbs, the same for every method."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "thumbs.jsonl"
        rows = split_sentences(read_sentences()).feedback[2000:2800]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_feedback([path]).records


def ours(method: str) -> float:
    """Tokens a second of `STEPS` updates."""
    policy = load_language_policy("small-lm")
    config = MethodConfig(method=method)
    groups, _ = groups_for(records(), takes(method, records(), config))
    groups, _ = prepare_groups(method, groups, config)
    objective, _ = make_objective(method, config, groups)
    rows, _ = Encoder(policy.tokenizer).groups(groups)
    critic = make_critic(objective, config, policy)
    optimizers = {"policy": make_optimizer(policy, kind="adamw", lr=1e-5, weight_decay=0.0)}
    if critic is not None:
        optimizers["value"] = make_optimizer(critic, kind="adamw", lr=1e-5, weight_decay=0.0)
    learner = Learner(policy, objective, FrozenCopy(policy), optimizers, critic=critic)
    mismatched = "mismatched" in objective.frozen_needs
    source = OfflineSource(rows, batch_size=BATCH, pad=policy.pad_token_id, mismatched=mismatched)
    learner.update(source.next())
    tokens, began = 0, time.perf_counter()
    for _ in range(STEPS):
        learner.update(source.next())
        tokens += source.num_tokens
    return tokens / (time.perf_counter() - began)


def naive() -> float:
    """The same PMPO step in plain torch: padded to the longest row, full logits, autograd."""
    policy = load_language_policy("small-lm")
    reference = policy.frozen_copy()
    groups, _ = groups_for(records(), "labels")
    rows, _ = Encoder(policy.tokenizer).groups(groups)
    source = OfflineSource(rows, batch_size=BATCH, pad=policy.pad_token_id)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)

    def step() -> int:
        batch = source.next()
        part, _ = present_rows(batch.context, batch.action)
        ids, mask = torch.cat([part.context, part.steps], 1), torch.cat([part.context_mask, part.mask], 1)
        log_p = policy.model(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
        with torch.no_grad():
            log_ref = reference.model(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
        width = part.context.shape[1]
        log_p, log_ref = log_p[:, width - 1 : -1], log_ref[:, width - 1 : -1]
        token = log_p.gather(-1, part.steps[..., None])[..., 0] * part.mask
        kl = (log_ref.exp() * (log_ref - log_p)).sum(-1) * part.mask
        assert isinstance(batch.feedback, Labels)
        sign = batch.feedback.sign[:, 0]
        (-sign * token.sum(-1) + kl.sum(-1)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return source.num_tokens

    step()
    began = time.perf_counter()
    tokens = sum(step() for _ in range(STEPS))
    return tokens / (time.perf_counter() - began)


def main() -> None:
    threads = torch.get_num_threads()
    print(f"{os.cpu_count()} cores, {threads} threads, torch {torch.__version__}; {STEPS} steps of {BATCH}")
    base = naive()
    print(f"{'naive pmpo':12} {base:8,.0f} tokens/s   1.00x")
    for method in ("pmpo", "supervised", "kto", "dro"):
        speed = ours(method)
        print(f"{method:12} {speed:8,.0f} tokens/s {speed / base:6.2f}x")


if __name__ == "__main__":
    main()

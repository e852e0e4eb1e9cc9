"""`valence demo`: the main job on real thumbs with the small model, before and after judged by a stranger."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from valence.errors import UserError
from valence.evaluation import language as measures
from valence.policies.loading import load_language_policy
from valence.reproduce.results import print_table
from valence.reproduce.thumbs_data import Judge, read_sentences, split_sentences
from valence.runs.align import align
from valence.training.reference import FrozenCopy

OPTIONS = {
    "method": "pmpo", "preset": "ar", "lr": 1e-2, "lr_schedule": "linear", "batch_size": 64, "optimizer": "adafactor",
}  # fmt: skip
"""The setting that `valence reproduce thumbs` chooses, on a seed that is not the demo's."""


def write_feedback(path: Path) -> None:
    """The feedback half and the held-out split as a file of thumbs, as a user would bring one."""
    halves = split_sentences(read_sentences())
    rows = [*halves.feedback, *halves.heldout]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(out: Path, *, steps: int | None = None, samples: int = 500) -> dict[str, dict[str, float]]:
    """Align, then show samples and figures before and after; returns {"before", "after"}.

    Raises:
        UserError: `out` already holds a demo.
    """
    if (out / "run").exists():
        raise UserError(f"{out} already holds a demo: delete it, or give another --out")
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    write_feedback(out / "thumbs.jsonl")
    halves = split_sentences(read_sentences())
    judge = Judge(halves.judge)
    print(
        f"Real thumbs: {len(halves.feedback):,} movie-review sentences with the critic's mark. The judge of the\n"
        f"result is a classifier fitted on {len(halves.judge):,} other sentences; it gets "
        f"{100 * judge.accuracy(halves.heldout):.0f}% of unseen ones right.\n"
    )
    result = align(
        out / "thumbs.jsonl", model="small-lm", out=out / "run", max_steps=steps, eval_every=25, max_new_tokens=64,
        **OPTIONS,
    )  # fmt: skip
    torch.manual_seed(0)
    before = load_language_policy("small-lm", max_new_tokens=64)
    after = load_language_policy(str(result.model), max_new_tokens=64)
    pad, prompts = before.pad_token_id, [[before.tokenizer.bos_token_id]] * samples
    texts, figures = {}, {}
    for name, policy in (("before", before), ("after", after)):
        texts[name], chunks = measures.sample_texts(policy, prompts, seed=11, pad=pad)
        figures[name] = {
            "judged positive, %": 100 * judge.positive(texts[name]),
            "KL(π‖π_ref), nats": measures.sampled_kl(policy, FrozenCopy(before), chunks, "policy_kl"),
            "distinct-2": measures.distinct_n(texts[name]), "words": measures.mean_words(texts[name]),
        }  # fmt: skip
    print("\nThe first ten samples of each, not picked:")
    for name in ("before", "after"):
        print(f"\n{name}:")
        for text in texts[name][:10]:
            print(f"  {'+' if judge.positive([text]) else '-'} {text}")
    print()
    rows = [{"": name} | row for name, row in figures.items()]
    print_table(f"{samples} fresh samples each; +/- above is the judge's verdict", rows)
    seconds = time.monotonic() - began
    (out / "results.json").write_text(json.dumps(figures | {"seconds": seconds}, indent=1, ensure_ascii=False) + "\n")
    print(f"Done in {seconds / 60:.1f} minutes. Open {out / 'run' / 'report.html'}; the model is {result.model}.")
    return figures

"""The demo: the main job on real thumbs with the small model, judged before and after by a separate classifier."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from valence.evaluation import language as measures
from valence.policies.loading import load_language_policy
from valence.rewards.sentences import SentenceJudge, read_sentences, split_sentences
from valence.runs.align import align
from valence.runs.options import Count, Options
from valence.runs.run import Log, claim
from valence.runs.settings import CONFIG_FILE, RunConfig
from valence.training.checkpoint import checkpoints
from valence.training.interrupt import Interrupted
from valence.training.progress import Busy
from valence.training.reference import FrozenCopy

OPTIONS: dict[str, Any] = {
    "method": "pmpo", "lr": 1e-2, "lr_schedule": "linear", "batch_size": 64, "optimizer": "adafactor",
    "separator": "",
}  # fmt: skip
"""The learning rate that the thumbs experiment chooses, on a seed that is not the demo's; beta at its bound."""


@dataclass(frozen=True)
class DemoConfig(RunConfig, Options):
    """Align the small model that Valence carries with real human thumbs, and show what changed."""

    command: ClassVar[str] = "demo"

    out: str = "demo-out"
    """Folder to write into."""
    max_steps: Count | None = None
    """Optimizer steps; one pass over the thumbs by default."""
    samples: Count = 500
    """Fresh samples judged before and after."""


def write_feedback(path: Path) -> None:
    """The feedback half and the held-out split as a file of thumbs, as a user would bring one."""
    halves = split_sentences(read_sentences())
    rows = [*halves.feedback, *halves.heldout]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def demo(config: DemoConfig, *, log: Log = print, show: bool = True) -> dict[str, dict[str, float]]:
    """Align, then show samples and figures before and after; returns {"before", "after"}.

    Raises:
        UserError: the folder already holds a demo.
    """
    began = time.monotonic()
    out = claim(Path(config.out), {}, can_resume=False)
    # The run's own folder is claimed by `align`; here before the judge is fitted.
    claim(out / "run", {}, can_resume=False)
    write_feedback(out / "thumbs.jsonl")
    halves = split_sentences(read_sentences())
    judge = SentenceJudge(halves.judge)
    log(
        f"Real thumbs: {len(halves.feedback):,} movie-review sentences with the critic's mark. The judge of the\n"
        f"result is a classifier fitted on {len(halves.judge):,} other sentences; it gets "
        f"{100 * judge.accuracy(halves.heldout):.0f}% of unseen ones right.\n"
    )
    try:
        result = align(
            out / "thumbs.jsonl", model="small-lm", out=out / "run", max_steps=config.max_steps, eval_every=25,
            max_new_tokens=64, quiet=not show, **OPTIONS,
        )  # fmt: skip
    except Interrupted as error:
        # The demo is one piece; its training is a run of align's, which can go on.
        on = f"{error}: valence align --config {out / 'run' / CONFIG_FILE} --resume"
        raise Interrupted(error.number, on if checkpoints(out / "run" / "checkpoints") else str(error)) from None
    torch.manual_seed(0)
    before = load_language_policy("small-lm", max_new_tokens=64)
    after = load_language_policy(str(result.model), max_new_tokens=64)
    prompts = [[before.tokenizer.bos_token_id]] * config.samples
    texts, figures = {}, {}
    for name, policy in (("before", before), ("after", after)):
        with Busy(f"sampling from the model {name}", show=show):
            texts[name], chunks = measures.sample_texts(policy, prompts, seed=11)
        figures[name] = {
            "judged positive, %": 100 * judge.positive(texts[name]),
            "KL(π‖π_ref), nats": measures.sampled_kl(policy, FrozenCopy(before), chunks, "policy_kl"),
            "distinct-2": measures.distinct_n(texts[name]), "words": measures.mean_words(texts[name]),
        }  # fmt: skip
    log("\nThe first ten samples of each, not picked:")
    for name in ("before", "after"):
        log(f"\n{name}:")
        for text in texts[name][:10]:
            log(f"  {'+' if judge.positive([text]) else '-'} {text}")
    log(f"\n{config.samples} fresh samples each; +/- above is the judge's verdict")
    names = list(figures["before"])
    log("  ".join(["        ", *names]))
    for name, row in figures.items():
        log("  ".join([f"{name:8}", *(f"{row[title]:{len(title)}.2f}" for title in names)]))
    seconds = time.monotonic() - began
    (out / "results.json").write_text(json.dumps(figures | {"seconds": seconds}, indent=1, ensure_ascii=False) + "\n")
    log(f"Done in {seconds / 60:.1f} minutes. Open {out / 'run' / 'report.html'}; the model is {result.model}.")
    return figures

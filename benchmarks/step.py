"""Whole offline steps: tokens a second of ours and of TRL's trainers, the same model, the same rows, one after another.

A Llama of H 256, 4 layers and V 32,768 with random weights; prompts of 8 to 160 words with two completions of 8 to
120 each, one accepted and one rejected. Unpaired methods (PMPO, KTO, supervised, DRO) see them as labelled rows, DPO as
pairs. A step is everything from rows to new weights, the reference's passes included. Tokens are real prompt and
completion tokens of labelled rows, whatever a method pads or repeats. Memory is the peak of the steps beyond what was
held before the first: gradients and the optimizer's state are in it. Each variant runs in a process of its own, round
after round; the median counts. Timings are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import apart, keep, memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""On a GPU everything runs in bfloat16 mixed precision, on a CPU in float32."""
VOCABULARY, WIDTH, LAYERS = 32_768, 256, 4
BATCH = 16
"""Labelled rows a step; for pairs half as many pairs."""
WARMUP, STEPS = 2, 6


def now() -> float:
    """Seconds, when all that was begun is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make_model(folder: Path) -> None:
    """A random model and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<unk>"]
    words = {word: place for place, word in enumerate([*special, *(f"w{n}" for n in range(VOCABULARY - 4))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def make_pairs(number: int) -> list[dict[str, str]]:
    """The same each time."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(VOCABULARY - 4)}" for _ in range(draw.randint(least, most)))

    return [
        {"prompt": text(8, 160), "chosen": " " + text(8, 120), "rejected": " " + text(8, 120)} for _ in range(number)
    ]


def unpaired(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def count(pairs: list[dict[str, str]]) -> int:
    """Real tokens of labelled rows: prompt, completion and the end."""
    return sum(len(f"{row['prompt']}{row['completion']}".split()) + 1 for row in unpaired(pairs))


def ours(folder: Path, method: str, *, head: str = "fused", batching: str = "auto") -> list[float]:
    """Seconds of the steps after the warm-up, and MiB; so the others, too."""
    from valence.data.collate import Encoder
    from valence.data.groups import groups_for
    from valence.data.groups.adjust import count_classes
    from valence.data.load import load_feedback
    from valence.data.prompting import Prompting
    from valence.policies.loading import load_language_policy
    from valence.runs.methods import ALIGN
    from valence.runs.options import ValueNetwork
    from valence.sources.offline import OfflineSource
    from valence.training.learner import Learner, make_optimizer
    from valence.training.reference import FrozenCopy

    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    policy = load_language_policy(str(folder), device=DEVICE, head=head, dtype=dtype, batching=batching)
    pairs = make_pairs((WARMUP + STEPS) * BATCH // 2)
    rows = pairs if method in ("dpo", "rebel") else unpaired(pairs)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, row = load_feedback([path]).records, ALIGN[method]
    options = row.options()
    objective = row.make(options)
    groups, _ = groups_for(records, row.feedback_kind(records, objective))
    if row.prepare is not None:
        groups, _ = row.prepare(groups, options, objective)
    if row.fit is not None:
        objective, _ = row.fit(objective, count_classes(groups))
    encoded, _ = Encoder(policy.tokenizer, Prompting(separator="")).groups(groups)
    critic = None if row.critic is None else row.critic(objective, ValueNetwork(), policy)
    optimizers = {"policy": make_optimizer(policy, kind="adamw", lr=1e-5, weight_decay=0.0)}
    if critic is not None:
        optimizers["value"] = make_optimizer(critic, kind="adamw", lr=1e-5, weight_decay=0.0)
    learner = Learner(policy, objective, FrozenCopy(policy), optimizers, critic=critic)
    source = OfflineSource(
        encoded, batch_size=BATCH // 2 if rows is pairs else BATCH, pad=policy.pad_token_id,
        mismatched="mismatched" in objective.frozen_needs, device=policy.device,
    )  # fmt: skip
    before, ends = memory(DEVICE, reset=True), []
    for _ in range(WARMUP + STEPS):
        learner.update(source.next())
        ends.append(now())
    return [ends[-1] - ends[WARMUP - 1], memory(DEVICE) - before]


def naive(folder: Path) -> list[float]:
    """A PMPO step in plain torch: padded rows, full logits of both models, autograd."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, reference = (AutoModelForCausalLM.from_pretrained(folder).to(DEVICE) for _ in range(2))
    reference.requires_grad_(False)
    precision = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    rows, ends = unpaired(make_pairs((WARMUP + STEPS) * BATCH // 2)), []
    random.Random(1).shuffle(rows)
    before = memory(DEVICE, reset=True)
    for step in range(WARMUP + STEPS):
        part = rows[step * BATCH : (step + 1) * BATCH]
        prompts = [tokenizer(row["prompt"])["input_ids"] for row in part]
        whole = [tokenizer(row["prompt"] + row["completion"] + " </s>")["input_ids"] for row in part]
        length = max(map(len, whole))
        ids = torch.tensor([row + [2] * (length - len(row)) for row in whole], device=DEVICE)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in whole], device=DEVICE)
        action = torch.tensor([
            [len(prompt) <= place < len(row) for place in range(1, length)]
            for prompt, row in zip(prompts, whole, strict=True)
        ], device=DEVICE)  # fmt: skip
        with precision:
            log_p = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
            with torch.no_grad():
                log_q = reference(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        token = log_p.gather(-1, ids[:, 1:, None])[..., 0] * action
        kl = (log_q.exp() * (log_q - log_p)).sum(-1) * action
        sign = torch.tensor([1.0 if row["label"] else -1.0 for row in part], device=DEVICE)
        (-sign * token.sum(-1) + kl.sum(-1)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(now())
    return [ends[-1] - ends[WARMUP - 1], memory(DEVICE) - before]


def trl(folder: Path, method: str, **settings: Any) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

    import trl as library

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    pairs = make_pairs((WARMUP + STEPS) * BATCH // 2)
    rows = pairs if method == "dpo" else unpaired(pairs)
    config = {"dpo": library.DPOConfig, "kto": library.KTOConfig}[method]
    trainer = {"dpo": library.DPOTrainer, "kto": library.KTOTrainer}[method]
    with tempfile.TemporaryDirectory() as out:
        args = config(
            output_dir=out, per_device_train_batch_size=BATCH // 2 if method == "dpo" else BATCH,
            max_steps=WARMUP + STEPS, learning_rate=1e-5, report_to="none", save_strategy="no", logging_strategy="no",
            max_length=None, disable_tqdm=True, bf16=DEVICE == "cuda", gradient_checkpointing=False,
            use_cpu=DEVICE == "cpu", **settings,
        )  # fmt: skip
        peer = trainer(
            model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, callbacks=[Clock()],
        )  # fmt: skip
        before = memory(DEVICE, reset=True)
        peer.train()
    return [ends[-1] - ends[WARMUP - 1], memory(DEVICE) - before]


VARIANTS: dict[str, Callable[[Path], list[float]]] = {
    "naive PMPO": naive,
    "PMPO": lambda folder: ours(folder, "pmpo"),
    "PMPO, plain head": lambda folder: ours(folder, "pmpo", head="plain"),
    "KTO": lambda folder: ours(folder, "kto"),
    "DPO": lambda folder: ours(folder, "dpo"),
    "DPO, row by row": lambda folder: ours(folder, "dpo", batching="rows"),
    "DRO-V": lambda folder: ours(folder, "dro"),
    "TRL KTO": lambda folder: trl(folder, "kto"),
    "TRL DPO": lambda folder: trl(folder, "dpo"),
}
if DEVICE == "cuda":
    # Liger's kernels are for GPUs alone.
    VARIANTS |= {
        "TRL KTO, Liger": lambda folder: trl(folder, "kto", use_liger_kernel=True),
        "TRL DPO, Liger": lambda folder: trl(folder, "dpo", use_liger_kernel=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help="run this variant here, and print its seconds and MiB")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/results/performance")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(VARIANTS[asked.one](asked.folder)))
        return
    # What was counted in warm-up steps is not known of a shuffled run: all steps' tokens, as a mean.
    tokens = count(make_pairs((WARMUP + STEPS) * BATCH // 2)) * STEPS / (WARMUP + STEPS)
    print(f"H {WIDTH}, {LAYERS} layers, V {VOCABULARY:,}; {STEPS} steps of {BATCH} rows, {tokens:,.0f} tokens")
    rounds: dict[str, list[float]] = {name: [] for name in asked.variants}
    most: dict[str, float] = dict.fromkeys(asked.variants, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for number in range(1, asked.rounds + 1):
            for name in asked.variants:
                found = apart(__file__, ["--one", name, "--folder", folder])
                if isinstance(found, str):
                    print(f"{number} {name:18} failed: {found}")
                    continue
                seconds, beyond = found
                rounds[name].append(tokens / seconds)
                most[name] = max(most[name], beyond)
                print(f"{number} {name:18} {tokens / seconds:8,.0f} tokens/s {beyond:8,.0f} MiB", flush=True)
    figures = {
        name: {"tokens_per_second": statistics.median(found), "rounds": found, "MiB": most[name]}
        for name, found in rounds.items()
        if found
    }
    if asked.keep:
        sizes = {"width": WIDTH, "layers": LAYERS, "vocabulary": VOCABULARY, "batch": BATCH, "steps": STEPS}
        keep("step", sizes | {"tokens": tokens, "device": DEVICE, "variants": figures})


if __name__ == "__main__":
    main()

"""Whole offline steps: tokens a second of ours and of TRL's trainers, the same model, the same rows, one after another.

A Llama of H 256, 4 layers and V 32,768 with random weights; prompts of 8 to 160 words with two completions of 8 to
120 each, one accepted and one rejected. Unpaired methods (PMPO, KTO, supervised, DRO) see them as labelled rows, DPO as
pairs. A step is everything from rows to new weights, the reference's passes included. Tokens are real prompt and
completion tokens of labelled rows, whatever a method pads or repeats. Each variant runs in a process of its own.
Timings are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def ours(folder: Path, method: str, *, head: str = "fused") -> float:
    from valence.data.collate import Encoder
    from valence.data.formats import load_feedback
    from valence.data.groups import groups_for
    from valence.policies.loading import load_language_policy
    from valence.runs.config import MethodConfig
    from valence.runs.methods import make_critic, make_objective, prepare_groups, takes
    from valence.sources.offline import OfflineSource
    from valence.training.learner import Learner, make_optimizer
    from valence.training.reference import FrozenCopy

    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    policy = load_language_policy(str(folder), device=DEVICE, head=head, dtype=dtype)
    pairs = make_pairs((WARMUP + STEPS) * BATCH // 2)
    rows = pairs if method in ("dpo", "rebel") else unpaired(pairs)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, config = load_feedback([path]).records, MethodConfig(method=method)
    groups, _ = groups_for(records, takes(method, records, config))
    groups, _ = prepare_groups(method, groups, config)
    objective, _ = make_objective(method, config, groups)
    encoded, _ = Encoder(policy.tokenizer).groups(groups)
    critic = make_critic(objective, config, policy)
    optimizers = {"policy": make_optimizer(policy, kind="adamw", lr=1e-5, weight_decay=0.0)}
    if critic is not None:
        optimizers["value"] = make_optimizer(critic, kind="adamw", lr=1e-5, weight_decay=0.0)
    learner = Learner(policy, objective, FrozenCopy(policy), optimizers, critic=critic)
    source = OfflineSource(
        encoded, batch_size=BATCH // 2 if rows is pairs else BATCH, pad=policy.pad_token_id,
        mismatched="mismatched" in objective.frozen_needs, device=policy.device,
    )  # fmt: skip
    ends = []
    for _ in range(WARMUP + STEPS):
        learner.update(source.next())
        ends.append(now())
    return ends[-1] - ends[WARMUP - 1]


def naive(folder: Path) -> float:
    """A PMPO step in plain torch: padded rows, full logits of both models, autograd."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, reference = (AutoModelForCausalLM.from_pretrained(folder).to(DEVICE) for _ in range(2))
    reference.requires_grad_(False)
    precision = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    rows, ends = unpaired(make_pairs((WARMUP + STEPS) * BATCH // 2)), []
    random.Random(1).shuffle(rows)
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
    return ends[-1] - ends[WARMUP - 1]


def trl(folder: Path, method: str) -> float:
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
            use_cpu=DEVICE == "cpu",
        )  # fmt: skip
        trainer(
            model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, callbacks=[Clock()],
        ).train()  # fmt: skip
    return ends[-1] - ends[WARMUP - 1]


VARIANTS: dict[str, Callable[[Path], float]] = {
    "naive pmpo": naive,
    "pmpo": lambda folder: ours(folder, "pmpo"),
    "pmpo, plain head": lambda folder: ours(folder, "pmpo", head="plain"),
    "kto": lambda folder: ours(folder, "kto"),
    "dpo": lambda folder: ours(folder, "dpo"),
    "dro": lambda folder: ours(folder, "dro"),
    "TRL kto": lambda folder: trl(folder, "kto"),
    "TRL dpo": lambda folder: trl(folder, "dpo"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--one", help="run this variant here, and print its seconds")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, help="append a line of JSON for each variant")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(VARIANTS[asked.one](asked.folder)))
        return
    # What was counted in warm-up steps is not known of a shuffled run: all steps' tokens, as a mean.
    tokens = count(make_pairs((WARMUP + STEPS) * BATCH // 2)) * STEPS / (WARMUP + STEPS)
    print(f"H {WIDTH}, {LAYERS} layers, V {VOCABULARY:,}; {STEPS} steps of {BATCH} rows, {tokens:,.0f} tokens")
    base = 0.0
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for name in asked.variants:
            words = [sys.executable, __file__, "--one", name, "--folder", folder]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name:18} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
                continue
            seconds = float(json.loads(done.stdout.splitlines()[-1]))
            base = base or tokens / seconds
            print(f"{name:18} {tokens / seconds:8,.0f} tokens/s {tokens / seconds / base:6.2f}x", flush=True)
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(json.dumps({"variant": name, "tokens_per_second": tokens / seconds}) + "\n")


if __name__ == "__main__":
    main()

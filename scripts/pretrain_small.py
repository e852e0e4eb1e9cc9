"""Pre-train the small language model that Valence carries (`valence/assets/small-lm`).

The recipe:
1. a byte-level BPE tokenizer of 4,096 pieces, trained on the two texts below, the reviews counted eight times;
2. `--text-steps` steps on windows of ordinary prose (Project Gutenberg) with some review sentences mixed in;
3. `--review-steps` steps of supervised fine-tuning on single review sentences, mixed with prose so that the model does
   not forget it.

The review sentences are rt_polarity's train split as plain text, without labels; its held-out split is not used. Each
sentence is read only about twice: a model that has memorised its feedback rows (a first one had, by a nat a token)
learns little from thumbs on them, since it would not generate the sentences that are pushed up or down.

    python scripts/pretrain_small.py --text train.txt.gz --heldout-text heldout.txt.gz \
        --reviews thumbs.jsonl.gz --out src/valence/assets/small-lm
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from valence.rewards.sentences import split_sentences

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def read_text(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def paragraphs(text: str) -> list[str]:
    """Plain paragraphs without line breaks; those of fewer than 8 words (headings, page marks) are dropped."""
    folded = (" ".join(block.split()) for block in text.split("\n\n"))
    return [block for block in folded if len(block.split()) >= 8]


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def stream(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """All texts as one sequence of ids, each between <s> and </s>."""
    ids: list[int] = []
    for row in tokenizer(texts, add_special_tokens=True)["input_ids"]:
        ids.extend(row)
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def windows(ids: torch.Tensor, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(ids) - length, (count,), generator=generator)
    return torch.stack([ids[start : start + length] for start in starts.tolist()])


def sentence_batch(rows: list[list[int]], count: int, pad: int, generator: torch.Generator) -> torch.Tensor:
    picks = torch.randint(0, len(rows), (count,), generator=generator).tolist()
    batch = [torch.tensor(rows[pick]) for pick in picks]
    return torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad)


def loss_on(model: Any, ids: torch.Tensor, pad: int) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):  # measured 1.4 times as fast; the weights stay float32
        logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad)


@torch.no_grad()
def evaluate(model: Any, prose: torch.Tensor, rows: list[list[int]], pad: int) -> tuple[float, float]:
    """The loss on (held-out prose, held-out sentences), nats per token."""
    model.eval()
    generator = torch.Generator().manual_seed(1)
    one = loss_on(model, windows(prose, 128, 128, generator), pad).item()
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    other = loss_on(model, padded, pad).item()
    model.train()
    return one, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--heldout-text", type=Path, required=True)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-steps", type=int, default=1500)
    parser.add_argument("--review-steps", type=int, default=150)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--review-lr", type=float, default=4e-4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    with gzip.open(args.reviews, "rt", encoding="utf-8") as file:
        halves = split_sentences([json.loads(line) for line in file])
    sentences = [row["completion"] for row in (*halves.feedback, *halves.judge)]
    prose = paragraphs(read_text(args.text))
    tokenizer = train_tokenizer([*prose, *(sentences * 8)], vocab_size=4096)
    prose_ids = stream(tokenizer, prose)
    heldout_ids = stream(tokenizer, paragraphs(read_text(args.heldout_text)))
    end = tokenizer.eos_token_id
    rows = [[*ids, end] for ids in tokenizer(sentences)["input_ids"]]
    heldout_rows = [[*ids, end] for ids in tokenizer([row["completion"] for row in halves.heldout])["input_ids"]]
    sentence_ids = stream(tokenizer, sentences)
    seen_rows = rows[:500]
    print(f"{len(prose_ids):,} prose tokens, {len(sentence_ids):,} review tokens, {len(rows):,} sentences", flush=True)

    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=5,
            num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=1024, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    pad = int(tokenizer.convert_tokens_to_ids(PAD))
    total = args.text_steps + args.review_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    started, seen = time.monotonic(), 0
    for step in range(total):
        if step < args.text_steps:
            warm, progress = min(1.0, (step + 1) / 100), step / args.text_steps
            rate = args.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
            few = args.batch // 16
            ids = torch.cat([
                windows(prose_ids, args.batch - few, args.window, generator),
                windows(sentence_ids, few, args.window, generator),
            ])  # fmt: skip
            loss = loss_on(model, ids, pad)
        else:
            progress = (step - args.text_steps) / args.review_steps
            rate = args.review_lr * 0.5 * (1 + math.cos(math.pi * progress))
            ids = sentence_batch(rows, 2 * args.batch, pad, generator)
            prose_loss = loss_on(model, windows(prose_ids, args.batch // 4, args.window, generator), pad)
            loss = loss_on(model, ids, pad) + 0.3 * prose_loss
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += ids.numel()
        if (step + 1) % 100 == 0 or step + 1 == total:
            text_nll, review_nll = evaluate(model, heldout_ids, heldout_rows, pad)
            _, known_nll = evaluate(model, heldout_ids, seen_rows, pad)
            speed = seen / (time.monotonic() - started)
            print(
                f"step {step + 1}/{total} loss {loss.item():.3f} held-out prose {text_nll:.3f} "
                f"sentences {review_nll:.3f} (read ones {known_nll:.3f}) nats/token, {speed:,.0f} tokens/s", flush=True,
            )  # fmt: skip
            model.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()

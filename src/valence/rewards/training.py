"""Training a reward or preference model: Bradley-Terry or an embedding on comparisons, a regression on scores."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valence.data.records import Message, Record, Text
from valence.errors import UserError
from valence.objectives.bradley_terry import bradley_terry_loss, score_loss
from valence.policies.loading import disable_dropout
from valence.rewards.reward_model import encode, prepare_padding, row_text

Gap = Callable[[Tensor, Tensor], Tensor]
"""A classifier's outputs for the first and second texts, each `[P, outputs]` -> log-odds that the first is better,
`[P]`, nats."""


def reward_gap(first: Tensor, second: Tensor) -> Tensor:
    """Bradley-Terry's: the difference of two rewards."""
    return first[:, 0] - second[:, 0]


@dataclass(frozen=True)
class Comparison:
    """Two texts and the probability that the first is better."""

    first: str
    second: str
    win: float = 1.0


@dataclass(frozen=True)
class Scored:
    """A text and its score."""

    text: str
    score: float


def comparisons(records: Sequence[Record], tokenizer: Any) -> list[Comparison]:
    """Pairs, and all ordered pairs of rankings and of one prompt's scores; better first; ties are left out, those of
    scored pairs too."""
    found: list[Comparison] = []
    by_prompt: dict[Text, list[tuple[Text, float]]] = {}
    for record in records:
        if record.shape == "pair" and not (record.scored and record.values[0] == record.values[1]):
            better, worse = (_text(tokenizer, record.prompt, part) for part in record.completions)
            found.append(Comparison(better, worse))
        elif record.shape == "ranking":
            found += _ordered(tokenizer, record.prompt, list(zip(record.completions, record.values, strict=True)))
        elif record.shape == "score":
            by_prompt.setdefault(record.prompt, []).append((record.completions[0], record.values[0]))
    for prompt, rows in by_prompt.items():
        found += _ordered(tokenizer, prompt, rows)
    return found


def _ordered(tokenizer: Any, prompt: Text, rows: Sequence[tuple[Text, float]]) -> list[Comparison]:
    texts = [_text(tokenizer, prompt, completion) for completion, _ in rows]
    return [
        Comparison(texts[i], texts[j])
        for i, (_, high) in enumerate(rows)
        for j, (_, low) in enumerate(rows)
        if high > low
    ]


def scored(records: Sequence[Record], tokenizer: Any) -> list[Scored]:
    """Scores as they are, labels as 1 and -1."""
    kept = [record for record in records if record.shape in ("score", "label") and record.values[0] is not None]
    return [Scored(_text(tokenizer, row.prompt, row.completions[0]), float(row.values[0])) for row in kept]


def _text(tokenizer: Any, prompt: Text, completion: Text) -> str:
    return row_text(tokenizer, _plain(prompt), _plain(completion))


def _plain(text: Text) -> Any:
    return text if isinstance(text, str) else [turn._asdict() if isinstance(turn, Message) else turn for turn in text]


def load_classifier(path: str, *, device: str = "cpu", outputs: int = 1) -> tuple[Any, Any]:
    """(a model of so many outputs on top of `path`'s backbone, its tokenizer), dropout off.

    Raises:
        UserError: there is no model there that can carry such a head.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        kind = transformers.AutoModelForSequenceClassification
        model: Any = kind.from_pretrained(path, num_labels=outputs, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"no reward model can be made from {path}: {said}") from error
    prepare_padding(model, tokenizer)
    disable_dropout(model)
    return model.to(device), tokenizer


def outputs_of(model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int) -> Tensor:
    """`[len(texts), outputs]`, differentiable."""
    encoded = encode(tokenizer, texts, max_length=max_length).to(model.device)
    return model(**encoded).logits.float()


def fit(
    model: Any, tokenizer: Any, rows: Sequence[Comparison] | Sequence[Scored], *, steps: int, batch_size: int,
    lr: float, seed: int, max_length: int, gap: Gap = reward_gap, on_step: Callable[[int, float], None] | None = None,
) -> None:  # fmt: skip
    """Adam with a linear decay to 0; both texts of a comparison go through the model together.

    Args:
        gap: what makes log-odds of the outputs for two texts; for comparisons.
    """
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=lr, weight_decay=0.0)
    batches = _batches(rows, batch_size, seed)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss = loss_of(model, tokenizer, next(batches), max_length=max_length, gap=gap).mean()
        if not loss.isfinite():
            raise UserError(f"the reward model's loss is {loss.item()} at step {step + 1}: lower --lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, loss.item())
    model.eval()


def loss_of(
    model: Any, tokenizer: Any, batch: Sequence[Comparison] | Sequence[Scored], *, max_length: int,
    gap: Gap = reward_gap,
) -> Tensor:  # fmt: skip
    """Of each row."""
    if isinstance(batch[0], Comparison):
        pairs = [row for row in batch if isinstance(row, Comparison)]
        both = [row.first for row in pairs] + [row.second for row in pairs]
        found = gap(*outputs_of(model, tokenizer, both, max_length=max_length).chunk(2))
        return bradley_terry_loss(found, torch.tensor([row.win for row in pairs], device=found.device))
    known = [row for row in batch if isinstance(row, Scored)]
    found = outputs_of(model, tokenizer, [row.text for row in known], max_length=max_length)[:, 0]
    return score_loss(found, torch.tensor([row.score for row in known], device=found.device))


def _batches(rows: Sequence[Any], size: int, seed: int) -> Iterator[list[Any]]:
    shuffling = random.Random(seed)
    while True:
        order = list(copy.copy(rows))
        shuffling.shuffle(order)
        for start in range(0, len(order), size):
            yield order[start : start + size]


@torch.no_grad()
def held_out_figures(
    model: Any, tokenizer: Any, rows: Sequence[Comparison] | Sequence[Scored], *, max_length: int,
    gap: Gap = reward_gap, batch_size: int = 64,
) -> dict[str, float]:  # fmt: skip
    """Accuracy of comparisons, or error and correlation of scores."""
    if isinstance(rows[0], Comparison):
        pairs = [row for row in rows if isinstance(row, Comparison)]
        gaps = torch.cat([
            gap(*(
                outputs_of(model, tokenizer, [getattr(row, side) for row in part], max_length=max_length)
                for side in ("first", "second")
            ))
            for part in (pairs[at : at + batch_size] for at in range(0, len(pairs), batch_size))
        ])  # fmt: skip
        right = (gaps > 0).float() + 0.5 * (gaps == 0).float()
        half = 1.96 * (right.var(correction=0) / len(right)).sqrt()
        return {"accuracy": right.mean().item(), "accuracy_95_half_width": half.item()}
    known = [row for row in rows if isinstance(row, Scored)]
    found = torch.cat([
        outputs_of(model, tokenizer, [row.text for row in known[at : at + batch_size]], max_length=max_length)[:, 0]
        for at in range(0, len(known), batch_size)
    ]).cpu()  # fmt: skip
    wanted = torch.tensor([row.score for row in known])
    figures = {"rmse": (found - wanted).square().mean().sqrt().item()}
    if len(known) > 2 and float(found.std()) > 0 and float(wanted.std()) > 0:
        figures["correlation"] = torch.corrcoef(torch.stack([found, wanted]))[0, 1].item()
    return figures

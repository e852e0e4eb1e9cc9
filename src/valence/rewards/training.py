"""Training of a reward model (Bradley-Terry on comparisons, or regression on scores) or of a preference model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valence.data.records import Message, Record, Text
from valence.errors import UserError
from valence.objectives.bradley_terry import bradley_terry_loss, score_loss
from valence.policies.dropout import disable_dropout
from valence.rewards.reward_model import loading, outputs_by_batch, outputs_of, prepare_padding, row_text

Gap = Callable[[Tensor, Tensor], Tensor]
"""A model's outputs for the first and the second texts, each `[P, outputs]` -> log-odds that the first is better,
`[P]`, nats."""


def reward_gap(first: Tensor, second: Tensor) -> Tensor:
    """The log-odds of Bradley-Terry: the difference of the two rewards."""
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
    """All pairs, better first: those of the data, of rankings and of the scores of one prompt. Ties are dropped."""
    rows: list[Comparison] = []
    by_prompt: dict[Text, list[tuple[Text, float]]] = {}
    for record in records:
        if record.shape == "pair" and not (record.scored and record.values[0] == record.values[1]):
            better, worse = (_text(tokenizer, record.prompt, part) for part in record.completions)
            rows.append(Comparison(better, worse))
        elif record.shape == "ranking":
            rows += _ordered(tokenizer, record.prompt, list(zip(record.completions, record.values, strict=True)))
        elif record.shape == "score":
            by_prompt.setdefault(record.prompt, []).append((record.completions[0], record.values[0]))
    for prompt, judged in by_prompt.items():
        rows += _ordered(tokenizer, prompt, judged)
    return rows


def _ordered(tokenizer: Any, prompt: Text, judged: Sequence[tuple[Text, float]]) -> list[Comparison]:
    """Every pair of completions with different scores, better first."""
    texts = [(_text(tokenizer, prompt, completion), score) for completion, score in judged]
    return [Comparison(better, worse) for better, high in texts for worse, low in texts if high > low]


def scored(records: Sequence[Record], tokenizer: Any) -> list[Scored]:
    """The scores of the data, and labels as 1 and -1."""
    rows = [record for record in records if record.shape in ("score", "label") and record.values[0] is not None]
    return [Scored(_text(tokenizer, row.prompt, row.completions[0]), float(row.values[0])) for row in rows]


def _text(tokenizer: Any, prompt: Text, completion: Text) -> str:
    return row_text(tokenizer, _plain(prompt), _plain(completion))


def _plain(text: Text) -> Any:
    return text if isinstance(text, str) else [turn._asdict() if isinstance(turn, Message) else turn for turn in text]


def load_classifier(path: str, *, device: str = "cpu", outputs: int = 1) -> tuple[Any, Any]:
    """(a model with `outputs` outputs on top of the backbone in `path`, its tokenizer); dropout is off.

    Raises:
        UserError: there is no model that can have such a head.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with loading(f"no reward model can be made from {path}"):
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        kind = transformers.AutoModelForSequenceClassification
        model: Any = kind.from_pretrained(path, num_labels=outputs, use_safetensors=True, dtype=torch.float32)
    prepare_padding(model, tokenizer)
    disable_dropout(model)
    return model.to(device), tokenizer


def fit(
    model: Any, tokenizer: Any, rows: Sequence[Comparison] | Sequence[Scored], *, steps: int, batch_size: int,
    lr: float, seed: int, max_length: int, gap: Gap = reward_gap, on_step: Callable[[int, float], None] | None = None,
) -> None:  # fmt: skip
    """Train with AdamW and a learning rate that falls linearly to 0.

    Args:
        gap: log-odds from the outputs of two texts; for comparisons.
        on_step: called with the step's number and loss.
    Raises:
        UserError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=lr, weight_decay=0.0)
    batches = _batches(rows, batch_size, seed)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss = loss_of(model, tokenizer, next(batches), max_length=max_length, gap=gap).mean()
        if not loss.isfinite():
            raise UserError(f"the reward model's loss is {loss.item()} at step {step + 1}: lower `lr`")
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
    """The loss of each row. Both texts of a comparison go through the model in one batch."""
    if isinstance(batch[0], Comparison):
        pairs = [row for row in batch if isinstance(row, Comparison)]
        both = [row.first for row in pairs] + [row.second for row in pairs]
        log_odds = gap(*outputs_of(model, tokenizer, both, max_length=max_length).chunk(2))
        return bradley_terry_loss(log_odds, torch.tensor([row.win for row in pairs], device=log_odds.device))
    rows = [row for row in batch if isinstance(row, Scored)]
    score = outputs_of(model, tokenizer, [row.text for row in rows], max_length=max_length)[:, 0]
    return score_loss(score, torch.tensor([row.score for row in rows], device=score.device))


def _batches(rows: Sequence[Any], size: int, seed: int) -> Iterator[list[Any]]:
    shuffling = random.Random(seed)
    while True:
        order = list(rows)
        shuffling.shuffle(order)
        for start in range(0, len(order), size):
            yield order[start : start + size]


@torch.no_grad()
def held_out_figures(
    model: Any, tokenizer: Any, rows: Sequence[Comparison] | Sequence[Scored], *, max_length: int,
    gap: Gap = reward_gap, batch_size: int = 64,
) -> dict[str, float]:  # fmt: skip
    """Accuracy on comparisons with its 95% half width, or root mean squared error and correlation of scores."""

    def outputs(texts: Sequence[str]) -> Tensor:
        return torch.cat([*outputs_by_batch(model, tokenizer, texts, max_length, batch_size)])

    if isinstance(rows[0], Comparison):
        pairs = [row for row in rows if isinstance(row, Comparison)]
        gaps = gap(outputs([row.first for row in pairs]), outputs([row.second for row in pairs]))
        right = (gaps > 0).float() + 0.5 * (gaps == 0).float()
        half = 1.96 * (right.var(correction=0) / len(right)).sqrt()
        return {"accuracy": right.mean().item(), "accuracy_95_half_width": half.item()}
    judged = [row for row in rows if isinstance(row, Scored)]
    predicted = outputs([row.text for row in judged])[:, 0].cpu()
    score = torch.tensor([row.score for row in judged])
    figures = {"rmse": (predicted - score).square().mean().sqrt().item()}
    if len(judged) > 2 and float(predicted.std()) > 0 and float(score.std()) > 0:
        figures["correlation"] = torch.corrcoef(torch.stack([predicted, score]))[0, 1].item()
    return figures


def unused_rows(kind: str, make: Callable[..., Any], records: Sequence[Record], tokenizer: Any) -> list[str]:
    """Lines about the rows of a file that a reward model does not use."""
    if kind == "scores":
        unused = len(records) - sum(bool(make([record], tokenizer)) for record in records)
        return [f"{unused:,} rows have no score or label and are not used"] * bool(unused)
    scores: dict[Any, set[float]] = {}
    for record in records:
        if record.shape == "score":
            scores.setdefault(record.prompt, set()).add(record.values[0])
    alone = sum(record.shape == "score" and len(scores[record.prompt]) < 2 for record in records)
    others = [record for record in records if record.shape in ("pair", "ranking")]
    unused = alone + sum(not make([record], tokenizer) for record in others)
    labels = sum(record.shape == "label" for record in records)
    lines = [f'{labels:,} labelled rows are not used beside comparisons: `kind="scores"` uses them'] * bool(labels)
    lines += [f"{unused:,} rows are not used: equal scores, or a score that is the only one of its prompt"] * bool(
        unused
    )
    return lines

"""Training of a reward model (Bradley-Terry on comparisons, or regression on scores) or of a preference model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from valence.data.prompting import Prompting
from valence.data.records import Record, Text
from valence.errors import UserError
from valence.objectives.bradley_terry import bradley_terry_loss, score_loss
from valence.policies.dropout import disable_dropout
from valence.rewards.functions import as_given
from valence.rewards.reward_model import loading, outputs_by_batch, outputs_of, prepare_padding, row_text

Gap = Callable[[Tensor, Tensor], Tensor]
"""A model's outputs for the first and the second texts, each `[P, outputs]` -> log-odds that the first is better,
`[P]`, nats."""
SURE = 1.645
"""Standard errors above chance from which on a held-out figure counts as better."""
SCORED = ("score", "label")
"""The shapes of records that regression learns from."""
USUAL = Prompting()


def reward_gap(first: Tensor, second: Tensor) -> Tensor:
    """The log-odds of Bradley-Terry: the difference of the two rewards."""
    return first[:, 0] - second[:, 0]


class Comparison(NamedTuple):
    """Two texts, of which the first is better."""

    first: str
    second: str


class Scored(NamedTuple):
    """A text and its score."""

    text: str
    score: float


Rows = Sequence[Comparison | Scored]


def comparisons(records: Sequence[Record], tokenizer: Any, prompting: Prompting = USUAL) -> list[Comparison]:
    """All pairs, better first: those of the data, of rankings and of the scores of one prompt. Ties are dropped."""
    rows: list[Comparison] = []
    by_prompt: dict[Text, list[tuple[Text, float]]] = {}
    for record in records:
        if record.shape == "pair" and not (record.scored and record.values[0] == record.values[1]):
            better, worse = (_text(tokenizer, prompting, record.prompt, part) for part in record.completions)
            rows.append(Comparison(better, worse))
        elif record.shape == "ranking":
            judged = list(zip(record.completions, record.values, strict=True))
            rows += _ordered(tokenizer, prompting, record.prompt, judged)
        elif record.shape == "score":
            by_prompt.setdefault(record.prompt, []).append((record.completions[0], record.values[0]))
    for prompt, judged in by_prompt.items():
        rows += _ordered(tokenizer, prompting, prompt, judged)
    return rows


def _ordered(
    tokenizer: Any, prompting: Prompting, prompt: Text, judged: Sequence[tuple[Text, float]]
) -> list[Comparison]:
    """Every pair of completions with different scores, better first."""
    texts = [(_text(tokenizer, prompting, prompt, completion), score) for completion, score in judged]
    return [Comparison(better, worse) for better, high in texts for worse, low in texts if high > low]


def scored(records: Sequence[Record], tokenizer: Any, prompting: Prompting = USUAL) -> list[Scored]:
    """The scores of the data, and labels as 1 and -1."""
    rows = [record for record in records if record.shape in SCORED]
    texts = [_text(tokenizer, prompting, row.prompt, row.completions[0]) for row in rows]
    return [Scored(text, float(row.values[0])) for text, row in zip(texts, rows, strict=True)]


def _text(tokenizer: Any, prompting: Prompting, prompt: Text, completion: Text) -> str:
    return row_text(tokenizer, as_given(prompt), as_given(completion), prompting)


def text_lengths(rows: Rows, tokenizer: Any) -> list[int]:
    """Tokens of each row's longer text, with the end token."""

    def lengths(texts: Sequence[str]) -> list[int]:
        return [1 + len(ids) for ids in tokenizer(list(texts))["input_ids"]]

    if not rows:
        return []
    if not isinstance(rows[0], Comparison):
        return lengths([row[0] for row in rows])
    left, right = zip(*rows, strict=True)
    return [max(pair) for pair in zip(lengths(left), lengths(right), strict=True)]


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
    model: Any, tokenizer: Any, rows: Rows, *, steps: int, batch_size: int, lr: float, seed: int, max_length: int,
    gap: Gap, on_step: Callable[[int, float], None],
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
        loss = _losses(model, tokenizer, next(batches), max_length, gap).mean()
        if not loss.isfinite():
            raise UserError(f"the reward model's loss is {loss.item()} at step {step + 1}: lower `lr`")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())
    model.eval()


def _losses(model: Any, tokenizer: Any, batch: Rows, max_length: int, gap: Gap) -> Tensor:
    """The loss of each row. Both texts of a comparison go through the model in one batch."""
    left, right = zip(*batch, strict=True)
    if isinstance(batch[0], Comparison):
        return bradley_terry_loss(gap(*outputs_of(model, tokenizer, [*left, *right], max_length).chunk(2)))
    score = outputs_of(model, tokenizer, left, max_length)[:, 0]
    return score_loss(score, torch.tensor(right, device=score.device))


def _batches(rows: Rows, size: int, seed: int) -> Iterator[Rows]:
    shuffling = random.Random(seed)
    while True:
        order = list(rows)
        shuffling.shuffle(order)
        for start in range(0, len(order), size):
            yield order[start : start + size]


@torch.no_grad()
def held_out_figures(model: Any, tokenizer: Any, rows: Rows, *, max_length: int, gap: Gap) -> dict[str, float]:
    """Accuracy on comparisons with its 95% half width, or root mean squared error and correlation of scores."""

    def outputs(texts: Sequence[str]) -> Tensor:
        return torch.cat([*outputs_by_batch(model, tokenizer, texts, max_length)])

    left, right = zip(*rows, strict=True)
    if isinstance(rows[0], Comparison):
        gaps = gap(outputs(left), outputs(right))
        wins = (gaps > 0).float() + 0.5 * (gaps == 0).float()
        half = 1.96 * (wins.var(correction=0) / len(wins)).sqrt()
        return {"accuracy": wins.mean().item(), "accuracy_95_half_width": half.item()}
    predicted, score = outputs(left)[:, 0].cpu(), torch.tensor(right)
    figures = {"rmse": (predicted - score).square().mean().sqrt().item()}
    if len(score) > 2 and float(predicted.std()) > 0 and float(score.std()) > 0:
        figures["correlation"] = torch.corrcoef(torch.stack([predicted, score]))[0, 1].item()
    return figures


def check_learnable(rows: Rows, records: Sequence[Record]) -> None:
    """Raise UserError where the scores of all rows are equal: nothing tells a better row from a worse one."""
    scores = {row.score for row in rows if isinstance(row, Scored)}
    if len(scores) != 1:
        return
    value = scores.pop()
    if all(record.shape == "label" for record in records if record.shape in SCORED):
        side, other = ("accepted", "rejected") if value > 0 else ("rejected", "accepted")
        raise UserError(
            f"all {len(rows):,} labels to train on are {side}: a reward model needs {other} rows too, or it "
            "learns one number for every text"
        )
    raise UserError(
        f"all {len(rows):,} scores to train on are {value:g}: a reward model needs rows that differ in their score"
    )


def doubt(figures: Mapping[str, float], held_out: int) -> str:
    """Why held-out rows do not show that a reward model learned anything; "" where they do, by a one-sided test at 5%.

    Args:
        figures: of `held_out_figures`.
        held_out: number of held-out rows.
    """
    rows = f"{held_out:,} held-out rows"
    if not held_out:
        return "no rows are held out, so nothing shows whether it learned anything: raise `eval_fraction`"
    if "accuracy" in figures:
        found, effect = f"its accuracy on {rows} is {figures['accuracy']:.2f}", 2 * figures["accuracy"] - 1
    elif "correlation" in figures:
        found, effect = f"its correlation with {rows} is {figures['correlation']:.2f}", figures["correlation"]
    else:
        found, effect = f"it gives {rows} one score, or they have one", 0.0
    if effect * math.sqrt(held_out) > SURE:
        return ""
    return f"{found}, no better than chance: give it more rows or steps (`max_steps`), and do not use it as a reward"


def unused_rows(kind: str, records: Sequence[Record], tokenizer: Any) -> list[str]:
    """Lines about the rows of a file that a reward model does not use."""
    if kind == "scores":
        unused = sum(record.shape not in SCORED for record in records)
        return [f"{unused:,} rows have no score or label and are not used"] * bool(unused)
    scores: dict[Text, set[float]] = {}
    for record in records:
        if record.shape == "score":
            scores.setdefault(record.prompt, set()).add(record.values[0])
    alone = sum(record.shape == "score" and len(scores[record.prompt]) < 2 for record in records)
    others = [record for record in records if record.shape in ("pair", "ranking")]
    unused = alone + sum(not comparisons([record], tokenizer) for record in others)
    labels = sum(record.shape == "label" for record in records)
    lines = [f'{labels:,} labelled rows are not used beside comparisons: `kind="scores"` uses them'] * bool(labels)
    if unused:
        lines.append(f"{unused:,} rows are not used: equal scores, or a score that is the only one of its prompt")
    return lines

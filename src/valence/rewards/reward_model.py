"""A sequence classifier as a judge: a reward model's score, or the logit of a class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from valence.errors import UserError

FIGURES = "reward_model.json"
"""Beside a model of ours: how it was trained, and its figures on held-out rows."""


PREFERENCE = "preference"
"""The `kind` in that file of a preference model, whose outputs are an embedding and no score."""


class RewardModel:
    """Any `AutoModelForSequenceClassification`: one output is a score, of several the last one's log-odds count.

    Args:
        path: a folder or hub id.
        device: where it runs.
        batch_size: texts at a time.
    Raises:
        UserError: there is no such model there, or one that gives a completion no score of its own.
    """

    def __init__(self, path: str, *, device: str = "cpu", batch_size: int = 64) -> None:
        if training_figures(path).get("kind") == PREFERENCE:
            raise UserError(
                f"{path} holds a preference model, which compares two completions and gives none a score of its own: "
                "give it as the one --reward or --judge, or train with --kind pairs"
            )
        self.model, self.tokenizer, self.max_length = load_judge(path, device=device)
        self.batch_size = batch_size
        self.__name__ = path

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        texts = [self.text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        found: list[float | None] = []
        for start in range(0, len(texts), self.batch_size):
            encoded = encode(self.tokenizer, texts[start : start + self.batch_size], max_length=self.max_length).to(
                self.model.device
            )
            logits = self.model(**encoded).logits.float()
            if logits.shape[1] > 1:
                logits = logits[:, -1:] - logits[:, :-1].logsumexp(1, keepdim=True)
            found += logits[:, 0].tolist()
        return found

    def text(self, prompt: Any, completion: Any) -> str:
        return row_text(self.tokenizer, prompt, completion)


def load_judge(path: str, *, device: str = "cpu") -> tuple[Any, Any, int]:
    """(a frozen sequence classifier, its tokenizer, the tokens that a text may have).

    Raises:
        UserError: there is no such model there.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        kinds = config.architectures or []
        if not any("SequenceClassification" in name for name in kinds):
            # Another model would be given a head of random weights, and judge by it.
            held = ", ".join(kinds) or "no model"
            raise UserError(f"{path} holds {held}, not a judge: valence reward-model makes one")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        kind = transformers.AutoModelForSequenceClassification
        model: Any = kind.from_pretrained(path, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"no reward model could be loaded from {path}: {said}") from error
    prepare_padding(model, tokenizer)
    model.to(device).eval().requires_grad_(False)
    return model, tokenizer, longest(model, path)


def training_figures(path: str) -> dict[str, Any]:
    """What was written beside a model of ours; empty for others. Raises UserError where that cannot be read."""
    told = Path(path) / FIGURES
    try:
        return dict(json.loads(told.read_text())) if told.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{told} cannot be read ({error}): write the model anew with valence reward-model") from error


def prepare_padding(model: Any, tokenizer: Any) -> None:
    """A padding token, for tokenizer and model: without one no two texts of unlike length go together."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def longest(model: Any, path: str) -> int:
    """Tokens that a text may have: what it was trained with where that was us, and what it has positions for."""
    asked = training_figures(path).get("max_length", 1024)
    return min(asked, getattr(model.config, "max_position_embeddings", None) or asked)


def row_text(tokenizer: Any, prompt: Any, completion: Any) -> str:
    """Prompt and completion as the model is to read them: through its template where they are messages."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns += [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    return "\n\n".join(turn["content"] for turn in turns)


def encode(tokenizer: Any, texts: Sequence[str], *, max_length: int) -> Any:
    """Token ids with the end token behind each text, padded on the right; of a text that is too long the end is kept,
    for the completion stands there."""
    end = tokenizer.eos_token_id
    rows = [tokenizer(text)["input_ids"][-(max_length - 1) :] for text in texts]
    rows = [row if end is None or row[-1:] == [end] else [*row, end] for row in rows]
    return tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")

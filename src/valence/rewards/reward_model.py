"""A sequence classifier as a judge: the score of a reward model, or the log-odds of a class."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from valence.data.prompting import Prompting
from valence.data.records import Message, Text
from valence.errors import UserError, one_line
from valence.rewards.ensemble import NO_FAILURES
from valence.rewards.functions import Chat

FIGURES = "reward_model.json"
"""The file beside a model that Valence trained: how it was trained, and its figures on held-out rows."""
PREFERENCE = "preference"
"""The `kind` in that file of a preference model, whose outputs are an embedding and no score."""
PROMPTING = "prompting"
"""The entry of that file that holds the fields of `Prompting`."""
BEFORE = Prompting(separator="", chat_template=False)
"""How prompts were given to the models of earlier versions, whose files have no such entry."""
TOGETHER = 64
"""Texts that go through a judge's model at once."""


class TextModel:
    """A frozen `AutoModelForSequenceClassification` with its tokenizer and the attributes of a `Judge`.

    A model that Valence trained is given prompts as it was in training.

    Args:
        path: a folder or hub id.
        device: where it runs.
    Raises:
        UserError: there is no such model.
    """

    failures, repeated = NO_FAILURES, 0

    def __init__(self, path: str, *, device: str = "cpu") -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        with loading(f"no reward model could be loaded from {path}"):
            config = transformers.AutoConfig.from_pretrained(path)
            kinds = config.architectures or []
            if not any("SequenceClassification" in name for name in kinds):
                # transformers would add a head of random weights to another model.
                kind = ", ".join(kinds) or "no model"
                raise UserError(f"{path} holds {kind}, not a judge: valence reward-model makes one")
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
            model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True)
        prepare_padding(model, self.tokenizer)
        self.model, self.name = model.to(device).eval().requires_grad_(False), path
        # The length in training, if it is known, within the model's positions.
        figures = training_figures(path)
        self.prompting = prompting_in_training(figures, path)
        trained = figures.get("max_length", 1024)
        self.max_length = min(trained, getattr(model.config, "max_position_embeddings", None) or trained)

    def texts(self, prompts: Sequence[Chat], completions: Sequence[Chat]) -> list[str]:
        """Each prompt with its completion as the model reads them."""
        rows = zip(prompts, completions, strict=True)
        return [row_text(self.tokenizer, *row, self.prompting) for row in rows]

    def outputs(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """The model's outputs, `TOGETHER` texts at a time."""
        return outputs_by_batch(self.model, self.tokenizer, texts, self.max_length)


class RewardModel(TextModel):
    """Any `AutoModelForSequenceClassification` as a `Judge`.

    The score is the one output of the model; of a model with several outputs, the log-odds of the last one.

    Raises:
        UserError: there is no such model, or it gives a completion no score of its own.
    """

    def __init__(self, path: str, *, device: str = "cpu") -> None:
        if training_figures(path).get("kind") == PREFERENCE:
            raise UserError(
                f"{path} holds a preference model, which compares two completions and gives none a score of its own: "
                'use it alone, not in an ensemble, or train a reward model with `kind="pairs"`'
            )
        super().__init__(path, device=device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Chat], completions: Sequence[Chat], **_: object) -> list[float | None]:
        scores: list[float | None] = []
        for logits in self.outputs(self.texts(prompts, completions)):
            if logits.shape[1] > 1:
                logits = logits[:, -1:] - logits[:, :-1].logsumexp(1, keepdim=True)
            scores += logits[:, 0].tolist()
        return scores


@contextlib.contextmanager
def loading(failure: str) -> Iterator[None]:
    """Raise what transformers raises for a bad folder as a UserError that begins with `failure`."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{failure}: {one_line(error)}") from error


def training_figures(path: str) -> dict[str, Any]:
    """The content of `FIGURES`; empty for a model that Valence did not train.

    Raises:
        UserError: the file cannot be read.
    """
    file = Path(path) / FIGURES
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): train the model again with valence reward-model") from error


def prepare_padding(model: Any, tokenizer: Any) -> None:
    """Give tokenizer and model a padding token, without which texts of different lengths cannot form a batch."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def prompting_in_training(figures: Mapping[str, Any], path: str) -> Prompting:
    """How prompts were given to the model of which `training_figures` holds the figures; as usual where it has none.

    Raises:
        UserError: the entry cannot be read.
    """
    if not figures:
        return Prompting()
    try:
        return Prompting(**figures[PROMPTING]) if PROMPTING in figures else BEFORE
    except TypeError as error:
        raise UserError(f"{Path(path) / FIGURES} has an entry {PROMPTING!r} that cannot be read: {error}") from error


def row_text(tokenizer: Any, prompt: Chat, completion: Chat, prompting: Prompting) -> str:
    """Prompt and completion as one text; messages go through the model's chat template, if it has one.

    Raises:
        UserError: the template rejects the messages.
    """
    turns, answer = prompting.turns(tokenizer, _as_text(prompt)), _as_text(completion)
    if isinstance(turns, str) and isinstance(answer, str):
        return turns + prompting.between(tokenizer, turns, [answer]) + answer
    both = [*_as_turns(turns, "user"), *_as_turns(answer, "assistant")]
    if tokenizer.chat_template:
        try:
            return tokenizer.apply_chat_template([turn._asdict() for turn in both], tokenize=False)
        except TemplateError as error:
            shown = " ".join(f"{turn.role}: {turn.content}" for turn in both)[:80]
            raise UserError(f"the reward model's chat template rejects {shown!r} ({one_line(error)})") from error
    return "\n\n".join(turn.content for turn in both)


def _as_text(chat: Chat) -> Text:
    return chat if isinstance(chat, str) else tuple(Message(turn["role"], turn["content"]) for turn in chat)


def _as_turns(text: Text, role: str) -> tuple[Message, ...]:
    return (Message(role, text),) if isinstance(text, str) else text


def outputs_of(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Tensor:
    """The model's outputs, `[len(texts), outputs]`. Differentiable.

    The end token follows each text. A text that is too long loses its beginning, as the completion stands at its end.
    """
    end = tokenizer.eos_token_id
    rows = [tokenizer(text)["input_ids"][-(max_length - 1) :] for text in texts]
    rows = [row if end is None or row[-1:] == [end] else [*row, end] for row in rows]
    encoded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    return model(**encoded.to(model.device)).logits.float()


def outputs_by_batch(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Iterator[Tensor]:
    """The model's outputs for `TOGETHER` texts at a time."""
    for start in range(0, len(texts), TOGETHER):
        yield outputs_of(model, tokenizer, texts[start : start + TOGETHER], max_length)

"""How prompts meet a model: its chat template, a system message, and what stands between prompt and completion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from valence.data.records import Message, Text, contents
from valence.errors import UserError, one_line

NEWLINE = "\n"
"""The separator where none is asked for."""
SYSTEM_ROLES = ("system", "developer")
LOOKED_AT = 1000
"""Prompts that are searched for special tokens."""


@dataclass(frozen=True)
class Prompting:
    """How prompts are given to a model; the same in training, in sampling and in judging.

    Args:
        separator: text between a plain prompt and its completion. None is a newline where the prompt does not end and
            its completions do not all begin with white space, and nothing where a plain prompt bypasses a template.
        chat_template: a plain prompt becomes a user's message, and its completion the assistant's, where the model
            has a chat template. Messages always go through the template.
        system: a system message, put before messages that have none.
    """

    separator: str | None = None
    chat_template: bool = True
    system: str | None = None

    def check(self, tokenizer: Any) -> None:
        """Raise UserError where there is a system message and the model cannot read it."""
        if self.system is None:
            return
        name = getattr(tokenizer, "name_or_path", "this model")
        advice = "leave it out, or put the text into the prompts"
        if not tokenizer.chat_template:
            raise UserError(f"`system` needs a chat template, and {name} has none: {advice}")
        rows = [{"role": "system", "content": self.system}, {"role": "user", "content": "?"}]
        try:
            text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            reason = one_line(error)
            raise UserError(f"the chat template of {name} rejects `system` ({reason}): {advice}") from error
        if self.system.strip() not in text:
            raise UserError(f"the chat template of {name} drops a system message, so also `system`: {advice}")

    def turns(self, tokenizer: Any, prompt: Text) -> Text:
        """The prompt as messages where it goes through the model's chat template; else as it is. "" is no prompt."""
        if not tokenizer.chat_template or (isinstance(prompt, str) and not self.chat_template):
            return prompt
        if isinstance(prompt, str):
            if not prompt and self.system is None:
                return prompt
            prompt = (Message("user", prompt),) if prompt else ()
        if self.system is not None and not any(turn.role in SYSTEM_ROLES for turn in prompt):
            prompt = (Message("system", self.system), *prompt)
        return prompt

    def between(self, tokenizer: Any, prompt: str, completions: Sequence[Text] = ()) -> str:
        """What stands between a plain prompt and its completions where both are one sequence; nothing after ""."""
        if not prompt:
            return ""
        if self.separator is not None:
            return self.separator
        texts = [part for part in map(_beginning, completions) if part]
        spaced = prompt[-1].isspace() or (texts and all(text[0].isspace() for text in texts))
        return "" if spaced or tokenizer.chat_template else NEWLINE

    def notes(
        self, tokenizer: Any, rows: Iterable[tuple[Text, Sequence[Text]]], *, encoder_decoder: bool = False
    ) -> list[str]:
        """Lines for the log about prompts with their completions: what happens to plain prompts.

        Args:
            encoder_decoder: whether prompt and completion are two sequences.
        """
        plain = [(prompt, texts) for prompt, texts in rows if isinstance(prompt, str) and prompt]
        if not plain:
            return []
        if not tokenizer.chat_template:
            joined = sum(self.between(tokenizer, prompt, texts) == NEWLINE for prompt, texts in plain)
            if self.separator is not None or encoder_decoder or not joined:
                return []
            return [
                f"a newline was put between prompt and completion of {joined:,} of {len(plain):,} plain-text rows, "
                'which have no white space there; `separator` takes another text, and `separator=""` none'
            ]
        if not self.chat_template:
            return ["plain prompts are used as they are, without the model's chat template"]
        unused = "" if self.separator is None else ", and `separator` is not used"
        advice = "`chat_template=False` uses them as they are"
        lines = [f"plain prompts go through the model's chat template{unused}; {advice}"]
        marks = special_tokens(tokenizer)
        marked = next((mark for prompt, _ in plain[:LOOKED_AT] for mark in marks if mark in prompt), None)
        if marked:
            lines.append(
                f"warning: a prompt holds the special token {marked}, as if a chat template had been applied already: "
                "`chat_template=False` uses such prompts as they are"
            )
        return lines


def special_tokens(tokenizer: Any) -> list[str]:
    """The spelling of the tokenizer's special tokens."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _beginning(completion: Text) -> str:
    return next(iter(contents(completion)), "")

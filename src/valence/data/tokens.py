"""A tokenizer that takes many texts in one call: alone, each call costs more than the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from valence.data.records import Message


class Tokens:
    """Token ids of texts, and messages rendered by the chat template.

    Within `noting`, texts are only noted, and have no ids. All of them are then given to the tokenizer in one call, and
    `ids` and `rendered` know their results until the next `noting`.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, bool], list[int]] = {}
        self._rendered: dict[tuple[tuple[Message, ...], bool], str | TemplateError] = {}
        self._noting = False

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a text, with the model's own special tokens around them where `special`."""
        if self._noting:
            self._known[text, special] = []
        elif (text, special) not in self._known:
            return list(self._called(text, special))
        return list(self._known[text, special])

    def rendered(self, turns: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Messages as the chat template writes them.

        Raises:
            TemplateError: the template refuses them.
        """
        key = tuple(turns), add_generation_prompt
        text = self._rendered.get(key)
        if text is None:
            rows = [turn._asdict() for turn in turns]
            try:
                text = self.tokenizer.apply_chat_template(
                    rows, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            except TemplateError as error:
                text = error
            if self._noting:
                self._rendered[key] = text
        if isinstance(text, TemplateError):
            raise text
        return text

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what is asked for, and ask the tokenizer for all of it at the end."""
        self._known, self._rendered, self._noting = {}, {}, True
        try:
            yield
        finally:
            self._noting = False
        for special in (True, False):
            texts = [text for text, kind in self._known if kind == special]
            if texts:
                for text, ids in zip(texts, self._called(texts, special), strict=True):
                    self._known[text, special] = ids

    def _called(self, texts: Any, special: bool) -> Any:
        options = {} if special else {"add_special_tokens": False}
        return self.tokenizer(texts, **options)["input_ids"]

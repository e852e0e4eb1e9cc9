"""Images for `valence.sources.online`: a context is a prompt, an action a path from noise to an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from valence.data.load import load_feedback
from valence.data.records import Problem, Record
from valence.errors import UserError, one_line
from valence.sources.modality import Drawn, OnlineSettings
from valence.sources.prompts import EncodedPrompt


def image_prompt(prompt: str, metadata: dict[str, Any] | None = None) -> EncodedPrompt:
    """A prompt for images. The reward gets the other fields of its row as `metadata`."""
    return EncodedPrompt([], prompt, {"metadata": metadata or {}})


class ImageModality:
    """Text prompts, completed by a denoiser. Drawing gives log pi_t of every step, so it is not measured again."""

    unit = "images"

    def context(self, policy: Any, prompts: Sequence[EncodedPrompt]) -> Any:
        return policy.context([str(row.prompt) for row in prompts])

    def draw(
        self, policy: Any, context: Any, prompts: Sequence[EncodedPrompt], settings: OnlineSettings,
        generator: torch.Generator,
    ) -> Drawn:  # fmt: skip
        action, log_prob = policy.draw(context, settings.num_samples, generator)
        return Drawn(action, log_prob)


def read_prompts(path: str) -> tuple[list[Record], list[Problem]]:
    """(prompts, rows with problems) of a text file, a prompt a line, or of a file of rows with "prompt".

    Raises:
        UserError: the file cannot be read.
    """
    if Path(path).suffix != ".txt":
        loaded = load_feedback([path])
        return list(loaded.records), list(loaded.problems)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`prompts` {path} cannot be read: {one_line(error)}") from error
    return [Record("prompt", line.strip()) for line in lines if line.strip()], []


def image_prompts(records: Sequence[Record], path: str) -> list[EncodedPrompt]:
    """The prompts of records; `path` is where they come from, for messages.

    Raises:
        UserError: there is none, or one is not plain text.
    """
    if not records:
        raise UserError(f"`prompts` {path} holds no prompt: give one a line")
    if bad := next((record.prompt for record in records if not isinstance(record.prompt, str)), None):
        raise UserError(f"`prompts` {path}: an image's prompt must be plain text, and one is {str(bad)[:80]!r}")
    return [image_prompt(str(record.prompt), dict(record.columns)) for record in records]

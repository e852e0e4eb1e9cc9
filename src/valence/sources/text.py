"""Text completions for `valence.sources.online`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError

from valence.data.collate import Encoder, move, pad_actions, pad_left
from valence.data.records import Record
from valence.errors import UserError
from valence.sources.modality import Drawn, OnlineSettings
from valence.sources.prompts import EncodedPrompt
from valence.types import Action, TokenContext


class TextModality:
    """Token prompts, completed by a language policy.

    Args:
        pad: id of the padding token.
    """

    unit = "completions"

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def context(self, policy: Any, prompts: Sequence[EncodedPrompt]) -> TokenContext:
        return move(pad_left([row.ids for row in prompts], self.pad), policy.device)

    def draw(
        self, policy: Any, context: TokenContext, prompts: Sequence[EncodedPrompt], settings: OnlineSettings,
        generator: torch.Generator,
    ) -> Drawn:  # fmt: skip
        """Completions with `ended`. log pi_t is left to the training model, as a sampler's may differ from it."""
        parts = settings.parts(len(prompts))
        drawn = [policy.sample(context.select(part), settings.num_samples, generator) for part in parts]
        action = drawn[0]
        if len(drawn) > 1 or settings.num_given:
            action = self._joined(policy, drawn, [row.given_completions[: settings.num_given] for row in prompts])
        ends = torch.tensor(policy.end_token_ids, device=action.steps.device)
        return Drawn(action, ended=(torch.isin(action.steps, ends) & action.mask).any(-1))

    def _joined(self, policy: Any, drawn: Sequence[Action], given: Sequence[Sequence[list[int]]]) -> Action:
        """All parts as one action, each row's given completions behind its drawn ones."""
        rows = [[row[mask].tolist() for row, mask in zip(*both, strict=True)]
                for action in drawn for both in zip(action.steps, action.mask, strict=True)]  # fmt: skip
        output = [list(row) for action in drawn for row in action.output or ()]
        for row, texts, more in zip(rows, output, given, strict=True):
            row += [list(ids) for ids in more]
            texts += [policy.decode(torch.tensor(ids)) for ids in more]
        widest = max(map(len, output))
        output = [row + [""] * (widest - len(row)) for row in output]
        return replace(move(pad_actions(rows, self.pad), drawn[0].mask.device), output=output)


def merged(records: Sequence[Record]) -> list[Record]:
    """One row for each prompt and its columns, with the completions of all its rows."""
    rows: dict[Any, Record] = {}
    for record in records:
        name = (record.prompt, repr(sorted(record.columns.items())))
        known = rows.get(name)
        rows[name] = record if known is None else replace(known, completions=known.completions + record.completions)
    return list(rows.values())


def encode_prompts(
    encoder: Encoder, records: Sequence[Record], *, longest_sample: int, num_given: int = 0
) -> tuple[list[EncodedPrompt], dict[str, int], list[int]]:
    """(prompts as token ids with the given completions of their rows, reason -> number of dropped rows, tokens of the
    longest sequence that each row may need).

    A row is dropped where it leaves no room for a sample, or where the model's template refuses it.

    Args:
        longest_sample: tokens of the longest sample.
        num_given: completions taken from each row.
    Raises:
        UserError: a row has fewer completions.
    """
    rows, dropped, lengths = [], Counter[str](), list[int]()
    for record in records:
        if len(record.completions) < num_given:
            raise UserError(f"`num_given={num_given}` takes completions from each row, and some rows have fewer")
        try:
            ids = encoder.prompt(record.prompt, record.completions)
            given = tuple(encoder.completion(record.prompt, text) for text in record.completions[:num_given])
        except TemplateError as error:
            dropped[f"the model's chat template refuses them ({error})"] += 1
            continue
        longest = max([longest_sample, *map(len, given)])
        lengths.append(max(len(ids), longest) if encoder.encoder_decoder else len(ids) + longest)
        if lengths[-1] > encoder.max_length:
            reason = f"they are longer than {encoder.max_length} tokens with their completion: raise `max_length`"
            dropped[reason] += 1
            continue
        rows.append(EncodedPrompt(ids, record.prompt, record.columns, given))
    return rows, dict(dropped), lengths

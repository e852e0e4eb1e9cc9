"""From text to tensors: groups of completions -> token ids -> a `Batch`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valence.data.groups import Group
from valence.data.records import Message, Problem, Text, contents
from valence.types import Action, Batch, Feedback, Labels, Preferences, Rewards, TokenContext


@dataclass(frozen=True)
class EncodedGroup:
    """A context and its completions as token ids. A completion ends with the end token unless it was truncated."""

    prompt: list[int]
    completions: list[list[int]]
    group: Group

    @property
    def num_tokens(self) -> int:
        """Tokens without padding; the prompt counts once for each completion."""
        return sum(len(self.prompt) + len(ids) for ids in self.completions)


class Encoder:
    """Turns prompts and completions into token ids for one model.

    Messages go through the model's chat template; a model without one gets their contents joined by blank lines. Plain
    strings are used unchanged, with `separator` between prompt and completion.

    Args:
        tokenizer: a transformers tokenizer with an end-of-sequence token.
        encoder_decoder: whether prompt and completion are two sequences (each within `max_length`) or one.
        max_length: most tokens of a sequence.
        end_token_ids: the tokens that end a completion (see `valence.policies.sampler.end_token_ids`); the
            tokenizer's end token by default.
    """

    def __init__(
        self, tokenizer: Any, *, encoder_decoder: bool = False, max_length: int = 1024, separator: str = "",
        end_token_ids: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.tokenizer, self.encoder_decoder = tokenizer, encoder_decoder
        self.max_length, self.separator = max_length, separator
        self.end_token_ids = frozenset(end_token_ids or (tokenizer.eos_token_id,))

    def prompt(self, prompt: Text) -> list[int]:
        """Token ids of a prompt, with the model's own special tokens; never empty."""
        templated = not isinstance(prompt, str) and bool(self.tokenizer.chat_template)
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt + self.separator if prompt else "")["input_ids"]
        elif templated:
            ids = self._template(prompt, add_generation_prompt=True)
        else:
            ids = self.tokenizer("\n\n".join([*(turn.content for turn in prompt), ""]))["input_ids"]
        end = self.tokenizer.eos_token_id
        if not self.encoder_decoder and not templated:
            while ids and ids[-1] == end:
                ids = ids[:-1]
        start = self.tokenizer.bos_token_id
        return list(ids) or [end if start is None else start]

    def completion(self, prompt: Text, completion: Text) -> list[int]:
        """Token ids of a completion up to its first end token; the tokenizer's is appended if it has none."""
        if not isinstance(completion, str) and not isinstance(prompt, str) and self.tokenizer.chat_template:
            before = self._template(prompt, add_generation_prompt=True)
            both = self._template((*prompt, *completion), add_generation_prompt=False)
            ids = both[len(before) :] if both[: len(before)] == before else self._plain(completion)
        else:
            ids = self._plain(completion)
        ends = (place for place, token in enumerate(ids) if token in self.end_token_ids)
        first = next(ends, None)
        return [*ids, self.tokenizer.eos_token_id] if first is None else ids[: first + 1]

    def _plain(self, completion: Text) -> list[int]:
        return list(self.tokenizer("\n\n".join(contents(completion)), add_special_tokens=False)["input_ids"])

    def _after_end(self, completion: Text) -> str:
        """The text after an end token that is spelled out in a completion."""
        return "".join(contents(completion)).partition(self.tokenizer.eos_token)[2].strip()

    def _template(self, turns: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        rows = [turn._asdict() for turn in turns]
        text = self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=add_generation_prompt)
        return self._plain(text)

    def group(self, group: Group) -> tuple[EncodedGroup | None, Problem | None]:
        """(the encoded group, or None if it was dropped; why it was dropped or what was truncated, or None)."""
        problem = partial(Problem, group.file, group.line)
        alone = _last_turns(group)
        if alone is None:
            return None, problem(
                "the completions differ in more than their last turn, and only a last turn is an action: row dropped"
            )
        try:
            prompt = self.prompt(alone.prompt)
            completions = [self.completion(alone.prompt, text) for text in alone.completions]
        except TemplateError as error:
            return None, problem(f"the model's chat template rejects these messages ({error}): row dropped")
        room = self.max_length - (0 if self.encoder_decoder else len(prompt))
        if room < 1 or len(prompt) > self.max_length:
            return None, problem(
                f"the prompt has {len(prompt)} tokens and leaves no room for a completion: row dropped; raise "
                f"`max_length`, which is {self.max_length}"
            )
        longest = max(len(ids) for ids in completions)
        reasons = []
        if any(self._after_end(text) for text in alone.completions):
            reasons.append(f"the text of a completion after the end token {self.tokenizer.eos_token!r} was dropped")
        if longest > room:
            reasons.append(
                f"a completion of {longest} tokens was truncated to {room}: `max_length` is {self.max_length}"
            )
        encoded = EncodedGroup(prompt, [ids[:room] for ids in completions], alone)
        return encoded, problem("; ".join(reasons)) if reasons else None

    def groups(
        self, groups: Sequence[Group], progress: Callable[[int], object] = lambda contexts: None
    ) -> tuple[list[EncodedGroup], list[Problem]]:
        """Encode all; every dropped or truncated row is a problem with its line and reason. `progress` is called with
        the number of contexts encoded so far."""
        results: list[tuple[EncodedGroup | None, Problem | None]] = []
        for group in groups:
            results.append(self.group(group))
            progress(len(results))
        return [good for good, _ in results if good is not None], [bad for _, bad in results if bad is not None]


def _last_turns(group: Group) -> Group | None:
    """The group with the leading turns of its completions moved to the prompt, so that one turn of each is left.

    None if the completions differ before their last turn: an earlier turn may be a user's, which is no action.
    """
    turns = [completion for completion in group.completions if not isinstance(completion, str)]
    if not turns or all(len(completion) == 1 for completion in turns):
        return group
    lead = turns[0][:-1]
    if (isinstance(group.prompt, str) and group.prompt) or any(completion[:-1] != lead for completion in turns):
        return None
    prompt = (*(group.prompt or ()), *lead)
    return replace(group, prompt=prompt, completions=tuple(completion[-1:] for completion in turns))


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> TokenContext:
    """Prompts of different lengths as one `TokenContext`, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return TokenContext(ids, mask)


def pad_actions(rows: Sequence[Sequence[Sequence[int]]], pad: int) -> Action:
    """Completions `[N][K][T]`, ragged in K and T, as one `Action`."""
    shape = (len(rows), max(len(row) for row in rows), max(len(ids) for row in rows for ids in row))
    steps, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.bool)
    for n, row in enumerate(rows):
        for k, ids in enumerate(row):
            steps[n, k, : len(ids)] = torch.tensor(ids)
            mask[n, k, : len(ids)] = True
    return Action(steps, mask)


def pad_feedback(groups: Sequence[Group]) -> Feedback:
    """The feedback of groups as one object.

    Raises:
        ValueError: the groups have different kinds of feedback.
    """
    shape = (len(groups), max(len(group.completions) for group in groups))
    present = torch.tensor([[k < len(group.completions) for k in range(shape[1])] for group in groups])
    signs = [group.sign for group in groups if group.sign is not None]
    rewards = [group.reward for group in groups if group.reward is not None]
    wins = [group.wins for group in groups if group.wins is not None]
    if len(signs) == len(groups):
        return Labels(pad_sequence([torch.tensor(row, dtype=torch.long) for row in signs], batch_first=True), present)
    if len(rewards) == len(groups):
        values = [torch.tensor(row, dtype=torch.float32) for row in rewards]
        return Rewards(pad_sequence(values, batch_first=True), present)
    if len(wins) != len(groups):
        raise ValueError("the groups of one batch have different kinds of feedback")
    win, observed = torch.zeros(*shape, shape[1]), torch.zeros(*shape, shape[1], dtype=torch.bool)
    margin = torch.zeros(*shape, shape[1])
    known = any(comparison[3] is not None for row in wins for comparison in row)
    for n, row in enumerate(wins):
        for i, j, probability, gap in row:
            win[n, i, j], win[n, j, i] = probability, 1 - probability
            observed[n, i, j] = observed[n, j, i] = True
            # NaN means that this comparison has no margin (see `preferences_to_pairs`).
            margin[n, i, j], margin[n, j, i] = (math.nan, math.nan) if gap is None else (gap, -gap)
    return Preferences(win, observed, present, margin if known else None)


def collate(rows: Sequence[EncodedGroup], *, pad: int, mismatched: Sequence[EncodedGroup] | None = None) -> Batch:
    """Encoded groups as one batch.

    Args:
        pad: id of the padding token.
        mismatched: another group for each row, whose first completion is the row's mismatched one (KTO).
    """
    return Batch(
        context=pad_left([row.prompt for row in rows], pad),
        action=pad_actions([row.completions for row in rows], pad),
        feedback=pad_feedback([row.group for row in rows]),
        mismatched=pad_actions([row.completions[:1] for row in mismatched], pad) if mismatched is not None else None,
    )


def move(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a batch or another dataclass of tensors, on `device`."""
    if isinstance(value, Tensor):
        if torch.device(device).type == "cuda" and value.device.type == "cpu":
            # A copy from pinned memory does not wait for the work that the GPU still has.
            return value.pin_memory().to(device, non_blocking=True)
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{item.name: move(getattr(value, item.name), device) for item in fields(value)})
    return value

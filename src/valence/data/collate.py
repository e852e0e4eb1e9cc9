"""From text to tensors: groups of completions -> token ids -> a `Batch`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valence.data.groups import Group
from valence.data.prompting import Prompting
from valence.data.records import Message, Problem, Text, contents
from valence.data.stored import Stored, blocks
from valence.data.tokens import Tokens
from valence.types import Action, Batch, Feedback, Labels, Preferences, Rewards, TokenContext


@dataclass(frozen=True)
class EncodedGroup:
    """A context and its completions as token ids. A completion ends with the end token unless it was truncated."""

    prompt: list[int]
    completions: list[list[int]]
    group: Group

    @classmethod
    def restored(cls, values: list[Any]) -> EncodedGroup:
        """The encoded group with these values of its fields, as JSON gives them back."""
        prompt, completions, group = values
        return cls(prompt, completions, Group.restored(group))

    @property
    def num_tokens(self) -> int:
        """Tokens without padding; the prompt counts once for each completion."""
        return sum(len(self.prompt) + len(ids) for ids in self.completions)


class Encoding(NamedTuple):
    """A group as token ids (None if it was dropped), why it was dropped or what was truncated (None if nothing was),
    and the tokens of its longest sequence before anything was cut (0 if there are none)."""

    row: EncodedGroup | None
    problem: Problem | None
    length: int = 0


class Encoder:
    """Turns prompts and completions into token ids for one model, as `Prompting` says.

    Messages go through the model's chat template; a model without one gets their contents joined by blank lines.

    Args:
        tokenizer: a transformers tokenizer with an end-of-sequence token.
        encoder_decoder: whether prompt and completion are two sequences (each within `max_length`, and with nothing
            between them unless a separator is asked for) or one.
        max_length: most tokens of a sequence.
        positions: tokens of a sequence that the model has room for, where that is known.
        end_token_ids: the tokens that end a completion (see `valence.policies.sampler.end_token_ids`); the
            tokenizer's end token by default.
    Raises:
        UserError: there is a system message, and the model cannot read it.
    """

    def __init__(
        self, tokenizer: Any, prompting: Prompting | None = None, *, encoder_decoder: bool = False,
        max_length: int = 1024, positions: int | None = None, end_token_ids: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.tokenizer, self.encoder_decoder, self.tokens = tokenizer, encoder_decoder, Tokens(tokenizer)
        self.prompting = prompting or Prompting()
        self.prompting.check(tokenizer)
        self.max_length, self.positions = min(max_length, positions or max_length), positions
        self.end_token_ids = frozenset(end_token_ids or (tokenizer.eos_token_id,))

    def prompt(self, prompt: Text, completions: Sequence[Text] = ()) -> list[int]:
        """Token ids of a prompt, with the model's own special tokens; never empty.

        Args:
            completions: the completions of its row, if any: what stands before them depends on their white space.
        """
        prompt = self.prompting.turns(self.tokenizer, prompt)
        templated = not isinstance(prompt, str) and bool(self.tokenizer.chat_template)
        if isinstance(prompt, str):
            ids = self.tokens.ids(prompt + self._between(prompt, completions))
        elif templated:
            ids = self._plain(self._render(prompt, add_generation_prompt=True))
        else:
            ids = self.tokens.ids("\n\n".join([*(turn.content for turn in prompt), ""]))
        end = self.tokenizer.eos_token_id
        if not self.encoder_decoder and not templated:
            while ids and ids[-1] == end:
                ids = ids[:-1]
        start = self.tokenizer.bos_token_id
        return list(ids) or [end if start is None else start]

    def completion(self, prompt: Text, completion: Text) -> list[int]:
        """Token ids of a completion up to its first end token; the tokenizer's is appended if it has none."""
        prompt = self.prompting.turns(self.tokenizer, prompt)
        if not isinstance(prompt, str) and self.tokenizer.chat_template:
            if isinstance(completion, str):
                completion = (Message("assistant", completion),)
            ids = self._answer(prompt, completion)
        else:
            ids = self._plain(completion)
        ends = (place for place, token in enumerate(ids) if token in self.end_token_ids)
        first = next(ends, None)
        return [*ids, self.tokenizer.eos_token_id] if first is None else ids[: first + 1]

    def notes(self, rows: Iterable[tuple[Text, Sequence[Text]]]) -> list[str]:
        """Lines for the log: what happens to the plain prompts of rows, given with their completions."""
        return self.prompting.notes(self.tokenizer, rows, encoder_decoder=self.encoder_decoder)

    def _between(self, prompt: str, completions: Sequence[Text]) -> str:
        if self.encoder_decoder and self.prompting.separator is None:
            return ""
        return self.prompting.between(self.tokenizer, prompt, completions)

    def _plain(self, completion: Text) -> list[int]:
        return self.tokens.ids("\n\n".join(contents(completion)), special=False)

    def _after_end(self, completion: Text) -> str:
        """The text after an end token that is spelled out in a completion."""
        return "".join(contents(completion)).partition(self.tokenizer.eos_token)[2].strip()

    def _answer(self, prompt: tuple[Message, ...], completion: tuple[Message, ...]) -> list[int]:
        """The token ids that follow the prompt's, as they do in sampling; the completion alone where the template
        renders the prompt in another way before an answer."""
        before = self._render(prompt, add_generation_prompt=True)
        both = self._render((*prompt, *completion), add_generation_prompt=False)
        first, ids = self._plain(before), self._plain(both)
        if ids[: len(first)] == first:
            return ids[len(first) :]
        return self._plain(both.removeprefix(before) if both.startswith(before) else completion)

    def _render(self, turns: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self.tokens.rendered(turns, add_generation_prompt=add_generation_prompt)

    def group(self, group: Group) -> tuple[EncodedGroup | None, Problem | None]:
        """(the encoded group, or None if it was dropped; why it was dropped or what was truncated, or None)."""
        found = self.encode(group)
        return found.row, found.problem

    def encode(self, group: Group) -> Encoding:
        """The group as token ids. A completion that is too long is truncated, and then has no end token."""
        problem = partial(Problem, group.file, group.line)
        alone = _last_turns(replace(group, prompt=self.prompting.turns(self.tokenizer, group.prompt)))
        if alone is None:
            reason = "the completions differ in more than their last turn, and only a last turn is an action"
            return Encoding(None, problem(f"{reason}: row dropped"))
        try:
            prompt = self.prompt(alone.prompt, alone.completions)
            completions = [self.completion(alone.prompt, text) for text in alone.completions]
        except TemplateError as error:
            return Encoding(None, problem(f"the model's chat template rejects these messages ({error}): row dropped"))
        longest = max(len(ids) for ids in completions)
        length = max(len(prompt), longest) if self.encoder_decoder else len(prompt) + longest
        room = self.max_length - (0 if self.encoder_decoder else len(prompt))
        if room < 1 or len(prompt) > self.max_length:
            reason = f"the prompt has {len(prompt)} tokens and leaves no room for a completion"
            advice = f"raise `max_length`, which is {self.max_length}"
            return Encoding(None, problem(f"{reason}: row dropped; {advice}"), length)
        reasons = []
        if any(self._after_end(text) for text in alone.completions):
            reasons.append(f"the text of a completion after the end token {self.tokenizer.eos_token!r} was dropped")
        if longest > room:
            reasons.append(
                f"a completion of {longest} tokens was truncated to {room}: `max_length` is {self.max_length}"
            )
        encoded = EncodedGroup(prompt, [ids[:room] for ids in completions], alone)
        return Encoding(encoded, problem("; ".join(reasons)) if reasons else None, length)

    def encode_all(self, groups: Iterable[Group]) -> Iterator[Encoding]:
        """`encode` of each group. The tokenizer gets the texts of many groups at once, which takes far less time."""
        for block in blocks(groups):
            with self.tokens.noting():
                for group in block:
                    self.encode(group)
            yield from map(self.encode, block)

    def groups(self, groups: Iterable[Group]) -> tuple[Stored[EncodedGroup], list[Problem]]:
        """Encode all; every dropped or truncated row is a problem with its line and reason."""
        rows, problems = Stored(EncodedGroup.restored), list[Problem]()
        for one in self.encode_all(groups):
            if one.row is not None:
                rows.append(one.row)
            if one.problem is not None:
                problems.append(one.problem)
        return rows, problems


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

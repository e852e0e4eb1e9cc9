"""Several completions of one prompt as one sequence: the prompt is read once.

The sequence is the prompt, then every completion in turn. A completion's tokens attend only to the prompt and to their
own completion, and their positions count as if it came right after the prompt. A model's outputs are then those of each
row by itself, for less work: K rows of P + T tokens become one of P + K T.

Shape legend: R rows · B sequences · L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valence.policies.rows import Rows, split


@dataclass(frozen=True)
class Trees:
    """Sequences for a causal model.

    Args:
        ids, positions: `[B, L]`, padded on the right.
        visible: which tokens (last dimension) each token attends to, `[B, L, L]`.
        rows: the rows in the sequences, `[r]`, in the order of `sequence` and `place`.
        sequence, place: where the hidden state that predicts each step of each row is, `[M]` each.
    """

    ids: Int[Tensor, "B L"]
    positions: Int[Tensor, "B L"]
    visible: Bool[Tensor, "B L L"]
    rows: Int[Tensor, " r"]
    sequence: Int[Tensor, " M"]
    place: Int[Tensor, " M"]


def siblings(
    owner: Int[Tensor, " R"], prompts: Sequence[int], steps: Sequence[int], *, longest: int
) -> tuple[list[list[int]], list[int]]:
    """(groups of two or more rows of one context, to read as one sequence; the rows to read one by one).

    A group is split where it would be longer than `longest`, or where its attention mask would be larger than those of
    its rows: the cost of attention is the square of a length.

    Args:
        owner: the context of each row.
        prompts, steps: the length of each row's prompt and action.
        longest: the most tokens of a sequence.
    """
    contexts: dict[int, list[int]] = {}
    for row, context in enumerate(owner.tolist()):
        contexts.setdefault(context, []).append(row)

    def fits(group: list[int]) -> bool:
        size, apart = tree_size(group, prompts, steps), sum((prompts[row] + steps[row]) ** 2 for row in group)
        return size <= longest and size**2 <= apart

    groups = [group for rows in contexts.values() for group in split(rows, fits)]
    shared = [group for group in groups if len(group) > 1 and prompts[group[0]] > 0]
    taken = {row for group in shared for row in group}
    return shared, [row for row in range(len(owner)) if row not in taken]


def tree_size(group: Sequence[int], prompts: Sequence[int], steps: Sequence[int]) -> int:
    """The tokens of rows of one context as one sequence: the last step of each predicts nothing that is needed."""
    return prompts[group[0]] + sum(steps[row] - 1 for row in group)


def plan(rows: Rows, *, budget: int, longest: int) -> tuple[list[list[list[int]]], list[int]]:
    """(groups of rows that share a prompt, those that run together in one list; the rows to run one by one).

    At most `budget` tokens run together, padding included; a sequence has at most `longest`.
    """
    prompts, steps = rows.lengths
    groups, alone = siblings(rows.owner, prompts, steps, longest=longest)
    sizes = [tree_size(group, prompts, steps) for group in groups]
    ordered = sorted(range(len(sizes)), key=sizes.__getitem__)
    pieces = split(ordered, lambda piece: len(piece) * sizes[piece[-1]] <= budget)
    return [[groups[place] for place in piece] for piece in pieces], alone


def make_trees(rows: Rows, groups: Sequence[Sequence[int]]) -> Trees:
    """One sequence for each of `groups`, rows of one context each."""
    ids, segments, positions, sequence, place = [], [], [], [], []
    for number, group in enumerate(groups):
        prompt = rows.context[group[0]][rows.context_mask[group[0]]]
        first = len(prompt)
        parts, segment, position = [prompt], [0] * first, [*range(first)]
        for child, row in enumerate(group, 1):
            # The last step predicts nothing that is needed.
            steps = rows.steps[row][rows.mask[row]][:-1]
            place += [first - 1, *range(len(segment), len(segment) + len(steps))]
            sequence += [number] * (len(steps) + 1)
            parts.append(steps)
            segment += [child] * len(steps)
            position += range(first, first + len(steps))
        ids.append(torch.cat(parts))
        segments.append(torch.tensor(segment))
        positions.append(torch.tensor(position))
    device, stack = rows.steps.device, partial(pad_sequence, batch_first=True)
    segment = stack(segments, padding_value=-1).to(device)
    length = segment.shape[1]
    one, other = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    # Padding attends to itself, so that no row of attention is empty.
    itself = torch.eye(length, dtype=torch.bool, device=device)
    visible = (causal & ((other == 0) | (one == other)) & (other >= 0)) | itself
    order = [row for group in groups for row in group]
    places = (torch.tensor(each, device=device) for each in (order, sequence, place))
    return Trees(stack(ids).to(device), stack(positions).to(device), visible, *places)


WINDOWED = ("window", "local", "chunk", "sparse", "block_types")
"""Parts of the names of settings that limit what a layer attends to."""


def attends_everywhere(config: Any) -> bool:
    """Whether every layer attends to the whole past, as far as its settings tell: else prompts cannot be shared."""
    settings = config.get_text_config().to_dict()
    kinds = settings.get("layer_types") or []
    if settings.get("use_sliding_window") is False:
        settings = {name: value for name, value in settings.items() if "window" not in name}
    limited = any(part in name and bool(value) for name, value in settings.items() for part in WINDOWED)
    return not limited and all(kind == "full_attention" for kind in kinds)

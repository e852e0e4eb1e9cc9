"""The types: rows of contexts, targets that read their fields' metadata, and token contexts padded on the left."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from valence.types import PER_BATCH, PER_CONTEXT, PER_PAIR, Pairs, Target, TokenContext, select_rows


@dataclass(frozen=True, kw_only=True)
class Example(Target):
    """One field of each kind."""

    weight: Tensor = field(metadata=PER_CONTEXT)
    pairs: Pairs = field(metadata=PER_PAIR)
    beta: Tensor = field(metadata=PER_BATCH)
    note: Tensor | None = field(default=None, metadata=PER_CONTEXT)

    def count(self) -> int:
        return len(self.pairs.gap)


def example() -> Example:
    """Three contexts of two actions, the first and the last with a pair."""
    pairs = Pairs(torch.tensor([[1, 0], [4, 5]]), torch.tensor([0.5, 2.0]))
    weight = torch.arange(6.0).view(3, 2)
    return Example(present=torch.ones(3, 2, dtype=torch.bool), weight=weight, pairs=pairs, beta=torch.tensor(0.3))


def test_a_target_counts_its_elements():
    assert Target(present=torch.tensor([[True, False], [True, True]])).size == 3
    assert Target(present=torch.zeros(2, 2, dtype=torch.bool)).size == 1
    assert example().size == 2


def test_fields_are_selected_by_their_metadata():
    part = example().select(slice(1, 3))
    assert isinstance(part, Example) and part.note is None and part.beta.item() == pytest.approx(0.3)
    assert part.weight.tolist() == [[2.0, 3.0], [4.0, 5.0]] and part.present.shape == (2, 2)
    # Renumbered from the second context; the size stays that of all three.
    assert part.pairs.index.tolist() == [[2, 3]] and part.pairs.gap.tolist() == [2.0] and part.size == 2


def test_a_minibatch_counts_anew():
    assert example().minibatch(slice(1, 3)).size == 1
    assert example().minibatch(slice(1, 2)).size == 1, "at least 1, also without a pair"
    assert example().minibatch(slice(0, 3)).size == 2


def test_rows_of_anything():
    assert select_rows(None, slice(0, 1)) is None
    assert select_rows([1, 2, 3], slice(1, 3)) == [2, 3]
    assert select_rows(torch.arange(3), slice(1, 3)).tolist() == [1, 2]
    context = TokenContext(torch.tensor([[0, 5], [6, 7]]), torch.tensor([[False, True], [True, True]]))
    assert select_rows(context, slice(0, 1)).ids.tolist() == [[0, 5]]


@pytest.mark.parametrize("mask", [[True, True, False], [True, False, True]])
def test_padding_behind_or_between_tokens_is_refused(mask: list[bool]):
    """Rows are cut from the left to their number of tokens: such a row would lose its last ones or keep padding."""
    with pytest.raises(ValueError, match="pad prompts on the left"):
        TokenContext(torch.tensor([[5, 6, 7]]), torch.tensor([mask]))


@pytest.mark.parametrize("mask", [[True] * 3, [False, True, True], [False] * 3])
def test_padding_on_the_left_is_taken(mask: list[bool]):
    assert TokenContext(torch.tensor([[5, 6, 7]]), torch.tensor([mask])).mask.tolist() == [mask]

"""A data set as a source: each row once an epoch, in a new order, resumable at any batch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from valence.data.collate import EncodedGroup
from valence.data.groups import Group
from valence.errors import UserError
from valence.sources.offline import OfflineSource
from valence.types import Batch, Labels


def rows(count: int) -> list[EncodedGroup]:
    """Row n has the prompt [n + 10] and the completion [n + 50, 1] (and twice that in the odd ones)."""
    return [
        EncodedGroup(
            [n + 10] * (1 + n % 3), [[n + 50] * (1 + n % 2) + [1]], Group(f"p{n}", ("c",), sign=(1 if n % 3 else -1,))
        )
        for n in range(count)
    ]


def source(count: int = 10, batch_size: int = 3, **options: Any) -> OfflineSource:
    return OfflineSource(rows(count), batch_size=batch_size, pad=0, **options)


def which(batch: Batch) -> list[int]:
    return (batch.context.ids[:, -1] - 10).tolist()


def epoch(given: OfflineSource) -> list[list[int]]:
    return [which(given.next()) for _ in range(given.batches_per_epoch)]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(10, 3, [3, 3, 3, 1]), (9, 3, [3, 3, 3]), (2, 5, [2]), (1, 1, [1])]
)
def test_every_row_once_an_epoch(count: int, batch_size: int, sizes: list[int]) -> None:
    given = source(count, batch_size)
    assert given.batches_per_epoch == len(sizes)
    for _ in range(3):
        batches = epoch(given)
        assert [len(batch) for batch in batches] == sizes
        assert sorted(row for batch in batches for row in batch) == list(range(count))


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    given, other = source(20, 20, seed=1), source(20, 20, seed=2)
    orders = [epoch(given)[0] for _ in range(4)] + [epoch(other)[0] for _ in range(4)]
    assert len({tuple(order) for order in orders}) == 8
    again = source(20, 20, seed=1)
    assert [epoch(again)[0] for _ in range(4)] == orders[:4]


def test_the_global_generator_plays_no_part() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = epoch(source())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert epoch(source()) == first


@pytest.mark.parametrize("taken", range(10))
def test_it_goes_on_from_any_batch(taken: int) -> None:
    given = source(seed=5)
    for _ in range(taken):
        given.next()
    state = json.loads(json.dumps(given.state_dict()))
    expected = [which(given.next()) for _ in range(9)]
    again = source(seed=0)
    again.next()
    again.load_state_dict(state)
    assert [which(again.next()) for _ in range(9)] == expected


def test_what_a_batch_holds() -> None:
    given = source(10, 4)
    batch = given.next()
    numbers = which(batch)
    assert isinstance(batch.feedback, Labels)
    assert batch.feedback.sign[:, 0].tolist() == [1 if n % 3 else -1 for n in numbers]
    for n, steps, mask in zip(numbers, batch.action.steps[:, 0], batch.action.mask[:, 0], strict=True):
        assert steps[mask].tolist() == [n + 50] * (1 + n % 2) + [1]
    assert given.num_units == sum((1 + n % 3) + (1 + n % 2) + 1 for n in numbers)
    assert given.num_units == int(batch.context.mask.sum() + batch.action.mask.sum())
    assert batch.mismatched is None


def prompted(prompts: list[int], batch_size: int, **options: Any) -> OfflineSource:
    """Row n has the prompt [prompts[n]] and the completion [n + 50, 1]."""
    made = [
        EncodedGroup([prompt], [[n + 50, 1]], Group(f"p{prompt}", ("c",), sign=(1,)))
        for n, prompt in enumerate(prompts)
    ]
    return OfflineSource(made, batch_size=batch_size, pad=0, mismatched=True, **options)


def pairs_of(given: OfflineSource) -> list[tuple[int, int]]:
    """(row, row of its mismatched completion) of the next batch."""
    batch = given.next()
    assert batch.mismatched is not None and batch.mismatched.mask.shape[:2] == batch.present.shape
    own, others = (part.steps[:, 0, 0] - 50 for part in (batch.action, batch.mismatched))
    return list(zip(own.tolist(), others.tolist(), strict=True))


def test_mismatched_completions_are_those_of_the_next_row() -> None:
    """Where all prompts differ: a rotation of the batch."""
    given = prompted(list(range(9)), 3)
    for _ in range(6):
        own, others = zip(*pairs_of(given), strict=True)
        assert others == (*own[1:], own[0])


def test_mismatched_completions_are_of_another_prompt() -> None:
    """Six rows of two prompts: the next row of the batch with the other prompt, and never the row's own."""
    prompts = [5, 5, 5, 7, 7, 7]
    given = prompted(prompts, 6)
    for _ in range(5):
        found = pairs_of(given)
        order = [own for own, _ in found]
        for place, (own, other) in enumerate(found):
            turned = order[place + 1 :] + order[:place]
            assert other == next(row for row in turned if prompts[row] != prompts[own])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_mismatched_completions_come_from_the_data_set_where_a_batch_has_one_prompt(batch_size: int) -> None:
    """Batches of one, the short last batch, and batches that are all of one prompt; resumed, they are the same."""
    prompts = [5, 5, 5, 5, 5, 7, 7]
    given, again = prompted(prompts, batch_size, seed=3), prompted(prompts, batch_size, seed=3)
    taken = []
    for _ in range(40):
        state = given.state_dict()
        again.load_state_dict(state)
        found = pairs_of(given)
        assert all(prompts[own] != prompts[other] for own, other in found)
        assert pairs_of(again) == found
        taken += [other for own, other in found if prompts[own] == 5]
    # Both rows of the other prompt serve.
    assert set(taken) == {5, 6}


def test_a_data_set_of_one_prompt_has_other_rows_and_a_single_row_none() -> None:
    """Without prompts there is no other one: then it is just another row, also in the last batch of one."""
    given = prompted([5] * 7, 3)
    for _ in range(9):
        found = pairs_of(given)
        assert all(own != other for own, other in found)
        if len(found) > 1:
            assert [other for _, other in found] == [own for own, _ in found[1:]] + [found[0][0]]
    with pytest.raises(UserError, match='add rows, or set `baseline="none"`'):
        prompted([5], 3)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        OfflineSource([], batch_size=2, pad=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        source(batch_size=0)

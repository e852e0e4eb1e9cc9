"""A data set as a source: each row once an epoch, in a new order, resumable at any batch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from valence.data.collate import EncodedGroup
from valence.data.groups import Group
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


def test_mismatched_completions_are_those_of_another_row() -> None:
    given = source(9, 3, mismatched=True)
    for _ in range(6):
        batch = given.next()
        assert batch.mismatched is not None and batch.mismatched.mask.shape[:2] == (3, 1)
        numbers = which(batch)
        others = (batch.mismatched.steps[:, 0, 0] - 50).tolist()
        assert all(mine != other for mine, other in zip(numbers, others, strict=True))
        assert sorted(others) == sorted(numbers)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        OfflineSource([], batch_size=2, pad=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        source(batch_size=0)

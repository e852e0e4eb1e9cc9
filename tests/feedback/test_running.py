"""Rewards in units of what each prompt has earned lately: statistics by hand, memory, and what is not there."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from valence.feedback.running import RunningStandard


def there(value: Tensor) -> Tensor:
    return torch.ones(value.shape, dtype=torch.bool)


def test_few_rewards_are_measured_against_the_whole_batch() -> None:
    """0, 2, 4, 6: mean 3, variance 5, whichever prompt each is of."""
    value = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    found = RunningStandard(size=8, least=3)(["a", "b"], value, there(value))
    torch.testing.assert_close(found, (value - 3) / math.sqrt(5), atol=1e-5, rtol=0)


def test_from_so_many_on_a_prompt_has_its_own() -> None:
    """Prompt a is seen twice a batch: 0, 4 leave it one short of three; 2, 6 make it four of mean 3, variance 5."""
    standard = RunningStandard(size=8, least=3)
    standard(["a"], torch.tensor([[0.0, 4.0]]), there(torch.zeros(1, 2)))
    value = torch.tensor([[2.0, 6.0], [100.0, 200.0]])
    found = standard(["a", "b"], value, there(value))
    # Prompt b is new: the batch's 2, 6, 100, 200 have mean 77 and variance 6581.
    own, batch = (value[0] - 3) / math.sqrt(5), (value[1] - 77) / math.sqrt(6581)
    torch.testing.assert_close(found, torch.stack([own, batch]), atol=1e-5, rtol=0)


def test_exactly_least_is_enough() -> None:
    value = torch.tensor([[0.0, 4.0], [10.0, 10.0]])
    found = RunningStandard(size=4, least=2)(["a", "b"], value, there(value))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), atol=1e-5, rtol=0)


def test_only_the_last_so_many_are_remembered() -> None:
    """Four are kept: 100, 200 of the first batch are forgotten, and 1, 3, 5, 7 have mean 4, variance 5."""
    standard = RunningStandard(size=4, least=2)
    standard(["a"], torch.tensor([[100.0, 200.0]]), there(torch.zeros(1, 2)))
    value = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    found = standard(["a"], value, there(value))
    torch.testing.assert_close(found, (value - 4) / math.sqrt(5), atol=1e-5, rtol=0)
    assert standard.state_dict() == {"known": {"a": [1.0, 3.0, 5.0, 7.0]}}


def test_a_prompt_that_comes_twice_in_a_batch_is_one_prompt() -> None:
    value = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    found = RunningStandard(size=4, least=4)(["a", "a"], value, there(value))
    torch.testing.assert_close(found, (value - 3) / math.sqrt(5), atol=1e-5, rtol=0)


def test_what_is_far_out_is_clipped() -> None:
    """Nine zeros and a ten: mean 1, deviation 3; the ten is 3 deviations away."""
    value = torch.tensor([[0.0] * 9 + [10.0]])
    assert RunningStandard(size=16, least=2)(["a"], value, there(value))[0, -1].item() == pytest.approx(3, abs=1e-4)
    clipped = RunningStandard(size=16, least=2, clip=0.25)(["a"], value, there(value))
    assert clipped.tolist() == [[-0.25] * 9 + [0.25]]


def test_absent_rewards_are_zero_and_count_nowhere() -> None:
    value = torch.tensor([[1.0, math.nan], [3.0, 1e9]])
    present = torch.tensor([[True, False], [True, False]])
    standard = RunningStandard(size=8, least=2)
    found = standard(["a", "b"], value, present)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), atol=1e-5, rtol=0)
    assert standard.state_dict() == {"known": {"a": [1.0], "b": [3.0]}}
    nothing = standard(["a", "c"], value, torch.zeros(2, 2, dtype=torch.bool))
    assert nothing.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("reward", [0.1, -12.3, 213.7, 1e6])
def test_equal_rewards_say_nothing(reward: float) -> None:
    """A mean's rounding must not pass for a reward: 213.7 in single precision is 0.00002 off its own mean."""
    value = torch.full((3, 8), reward)
    for least in (4, 9):
        found = RunningStandard(size=16, least=least)(["a", "b", "c"], value, there(value))
        assert float(found.abs().max()) < 1e-3


def test_size_zero_leaves_rewards_as_they_are() -> None:
    value, present = torch.tensor([[5.0, -70.0, 3.0]]), torch.tensor([[True, True, False]])
    standard = RunningStandard(size=0, clip=1.0)
    assert standard(["a"], value, present).tolist() == [[5.0, -70.0, 0.0]]
    assert standard.state_dict() == {"known": {}}


def test_it_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 3, generator=generator) for _ in range(4)]
    whole = RunningStandard(size=6, least=4)
    expected = [whole(["a", "b"], batch, there(batch)) for batch in batches]
    first = RunningStandard(size=6, least=4)
    for batch in batches[:2]:
        first(["a", "b"], batch, there(batch))
    kept = json.loads(json.dumps(first.state_dict()))
    first(["a", "b"], batches[0], there(batches[0]))
    again = RunningStandard(size=6, least=4)
    again.load_state_dict(kept)
    for batch, wanted in zip(batches[2:], expected[2:], strict=True):
        assert torch.equal(again(["a", "b"], batch, there(batch)), wanted)
    assert again.state_dict() == whole.state_dict()


@pytest.mark.parametrize("wrong", [{"size": -1}, {"size": 1}, {"least": 1}, {"size": 8, "least": 9}, {"clip": 0.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="`least` at least 2 and at most `size`"):
        RunningStandard(**wrong)  # type: ignore[arg-type]

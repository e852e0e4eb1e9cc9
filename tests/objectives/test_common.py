"""The shared checks: each names the field and what is allowed; means are never NaN."""

from __future__ import annotations

import math

import pytest
import torch

from valence.objectives.common import (
    count,
    means,
    part,
    require_choice,
    require_fraction,
    require_non_negative,
    require_positive,
    step_mask,
    zero_absent,
)
from valence.types import Likelihood, sum_steps


def test_choices_are_listed():
    require_choice(("kl", "bc"), regularizer="bc")
    with pytest.raises(ValueError, match="`regularizer` must be one of 'kl', 'bc', got 'none'"):
        require_choice(("kl", "bc"), regularizer="none")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_out_of_range_are_named(value):
    for check in (require_positive, require_non_negative, require_fraction):
        with pytest.raises(ValueError, match=f"`tau` must .* got {value}"):
            check(tau=value)


def test_zero_is_non_negative_and_not_positive():
    require_non_negative(beta=0.0)
    require_fraction(alpha=0.0, other=None)
    with pytest.raises(ValueError, match="`beta` must be finite and > 0, got 0"):
        require_positive(beta=0.0)


def test_missing_part_is_named():
    likelihood = Likelihood(torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="DPO needs ref_log_prob"):
        part(likelihood, "ref_log_prob", "DPO")
    with pytest.raises(ValueError, match="KTO needs log_prob"):
        part(None, "log_prob", "KTO")


def test_zero_absent_stops_nan_in_value_and_gradient():
    value = torch.tensor([[1.0, math.nan]], requires_grad=True)
    masked = zero_absent(value, torch.tensor([[True, False]]))
    masked.square().sum().backward()
    assert masked.tolist() == [[1.0, 0.0]]
    assert value.grad is not None and value.grad.tolist() == [[2.0, 0.0]]


def test_means_leave_out_what_has_none():
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    result = means({"all": (values, torch.tensor([True, True])), "none": (values, torch.tensor([False, False]))})
    assert set(result) == {"all"}
    assert result["all"].item() == 2.0 and not result["all"].requires_grad


def test_sums_over_steps_are_in_single_precision_at_least():
    """1000 steps of -1: in bfloat16 the sum is stuck at -256, where the spacing is 2."""
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        log_prob = torch.full((1, 1, 1000), -1.0, dtype=dtype, requires_grad=True)
        total = Likelihood(log_prob, ref_kl=-log_prob.detach()).total()
        assert total.log_prob.dtype == expected and total.log_prob.item() == -1000.0
        assert total.ref_kl is not None and total.ref_kl.item() == 1000.0
        total.log_prob.sum().backward()
        assert log_prob.grad is not None and log_prob.grad.dtype == dtype and log_prob.grad.unique().tolist() == [1.0]
    assert sum_steps(torch.full((4, 300), 0.125, dtype=torch.bfloat16)).tolist() == [37.5] * 4


def test_count_of_nothing_is_one():
    assert count(torch.zeros(2, 2, dtype=torch.bool)) == 1.0
    assert count(torch.ones(2, 2, dtype=torch.bool)) == 4.0


def test_lengths_are_not_guessed():
    assert step_mask(Likelihood(torch.zeros(1, 2, 1)), "RPO").tolist() == [[[True], [True]]]
    with pytest.raises(ValueError, match="RPO needs the likelihood's mask"):
        step_mask(Likelihood(torch.zeros(1, 2, 3)), "RPO")

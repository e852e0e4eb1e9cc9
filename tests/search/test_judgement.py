"""Feedback of every kind as classes, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from valence.search.judgement import judge_labels, judge_pairs, judge_ranks, judge_values, merge

LOG = np.log(2.5 / np.array([1, 2]))


def test_values_accept_the_better_half_by_rank() -> None:
    judged = judge_values([30.0, -1.0, 7.0, np.inf], 4)
    np.testing.assert_array_equal(judged.accepted, [0, 1, 1, 0])
    np.testing.assert_array_equal(judged.rejected, [1, 0, 0, 1])
    np.testing.assert_allclose(judged.strength, [0, LOG[0], LOG[1], 0])


def test_the_middle_of_an_odd_draw_is_unlabelled() -> None:
    judged = judge_values([3.0, 1.0, 2.0], 3)
    np.testing.assert_array_equal(judged.accepted, [0, 1, 0])
    np.testing.assert_array_equal(judged.rejected, [1, 0, 0])


def test_ties_share_and_their_order_does_not_matter() -> None:
    judged = judge_values([2.0, 1.0, 2.0, 3.0], 4)
    np.testing.assert_allclose(judged.accepted, [0.5, 1, 0.5, 0])
    np.testing.assert_allclose(judged.rejected, [0.5, 0, 0.5, 1])
    np.testing.assert_allclose(judged.strength, [LOG[1] / 2, LOG[0], LOG[1] / 2, 0])


def test_ranks_are_values_of_any_scale() -> None:
    ranks, values = judge_ranks([3, 1, 2, 4], 4), judge_values([1e9, -5.0, 0.0, 1e10], 4)
    for name in ("accepted", "strength", "rejected"):
        np.testing.assert_array_equal(getattr(ranks, name), getattr(values, name))


def test_labels_as_signs_truths_and_nothing() -> None:
    judged = judge_labels([1, -1, True, False, None, 0, 1.0, np.bool_(False)], 8)
    np.testing.assert_array_equal(judged.accepted, [1, 0, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(judged.rejected, [0, 1, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(judged.strength, judged.accepted)


def test_pairs_weigh_by_wins_over_losses() -> None:
    """0 beats 1 and 2; 1 beats 2 once and loses once: an even edge for both; 3 is in no pair."""
    judged = judge_pairs([(0, 1), (0, 2), (1, 2), (2, 1)], 4)
    np.testing.assert_allclose(judged.accepted, [1, 0, 0, 0])
    np.testing.assert_allclose(judged.rejected, [0, 0.5, 0.5, 0])


def test_tells_are_joined_in_order() -> None:
    judged = merge([judge_labels([1], 1), judge_labels([-1, 0], 2)])
    np.testing.assert_array_equal(judged.accepted, [1, 0, 0])
    np.testing.assert_array_equal(judged.rejected, [0, 1, 0])


@pytest.mark.parametrize(
    "judge, what",
    [
        (judge_values, [1.0, 2.0]), (judge_values, [1.0, np.nan, 2.0]), (judge_values, "abc"),
        (judge_values, [[1.0], [2.0], [3.0]]), (judge_ranks, [1, 2]), (judge_ranks, [1, None, 3]),
        (judge_labels, [1, -1]), (judge_labels, [1, -1, 2]), (judge_labels, ["good", "bad", "bad"]),
        (judge_labels, [0.5, 1, -1]), (judge_pairs, [(0, 0)]), (judge_pairs, [(0, 3)]), (judge_pairs, [(-1, 0)]),
        (judge_pairs, [(0, 1, 2)]), (judge_pairs, []), (judge_pairs, [(0.5, 1)]), (judge_pairs, [0, 1]),
        (judge_pairs, [(0, 1), (2,)]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(judge: Any, what: Any) -> None:
    with pytest.raises(ValueError):
        judge(what, 3)

"""Ask and tell: every kind of feedback leads to the optimum, and a saved search continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valence.errors import UserError
from valence.objectives.pmpo import PMPO, pmpo_a, pmpo_ar, pmpo_r
from valence.search import Box, PreferenceSearch, Unbounded
from valence.search.functions import rosenbrock, schwefel, sphere

OPTIMUM = np.array([1.3, -2.1])
Tell = Callable[[PreferenceSearch, np.ndarray, np.ndarray], None]


def off_centre(x: np.ndarray) -> float:
    return sphere(x - OPTIMUM)


def run(search: PreferenceSearch, tell: Tell, steps: int, ask: int | None = None) -> PreferenceSearch:
    for _ in range(steps):
        x = search.ask(ask)
        tell(search, x, np.array([off_centre(point) for point in x]))
    return search


def by_values(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    search.tell(x, values=values)


def by_ranks(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    search.tell(x, ranks=values.argsort().argsort() + 1)


def by_pairs(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    pairs = np.arange(len(x)).reshape(-1, 2)
    search.tell(x, pairs=[(a, b) if values[a] < values[b] else (b, a) for a, b in pairs.tolist()])


def by_labels(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    search.tell(x, labels=[bool(value <= np.median(values)) for value in values])


def only_good(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    search.tell(x, labels=[1 if value <= np.median(values) else None for value in values])


def only_bad(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    search.tell(x, labels=[-1 if value > np.median(values) else 0 for value in values])


def only_complaints(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
    """No feedback on the others at all."""
    bad = values >= np.median(values)
    search.tell(x[bad], labels=[False] * int(bad.sum()))


KINDS: list[tuple[Tell, float]] = [
    (by_values, 1e-6), (by_ranks, 1e-6), (by_pairs, 1e-4), (by_labels, 1e-4), (only_good, 1e-4), (only_bad, 1e-4),
    (only_complaints, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("kl", ["sampled", "exact"])
@pytest.mark.parametrize("tell, reached", KINDS)
def test_every_kind_of_feedback_leads_to_the_optimum(tell: Tell, reached: float, kl: Any) -> None:
    """With the KL in closed form, complaints alone are slow: they have to come within a tenth of the width."""
    slow = kl == "exact" and tell in (only_bad, only_complaints)
    end = off_centre(run(PreferenceSearch(Box(-5, 5, 2), seed=200, kl=kl), tell, 100).mean)
    first = off_centre(np.zeros(2))
    assert end <= (1.0 if slow else 100 * reached if kl == "exact" else reached) < first / 5


@pytest.mark.parametrize("objective", [pmpo_ar(), pmpo_a(), pmpo_r(), PMPO(alpha=0.2), PMPO(alpha=0.0, beta=3.0)])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_every_side_alone_leads_to_the_optimum(objective: PMPO, covariance: Any) -> None:
    search = run(PreferenceSearch(Box(-5, 5, 2), objective, covariance=covariance, seed=203), by_values, 100)
    assert search.result.value is not None and search.result.value < 1e-6


def test_random_labels_get_nowhere() -> None:
    lots, ends = np.random.default_rng(0), []
    for seed in (200, 201, 202):
        search = PreferenceSearch(Box(-5, 5, 2), seed=seed)
        for _ in range(100):
            x = search.ask()
            search.tell(x, labels=np.where(lots.permutation(len(x)) < len(x) // 2, 1, -1).tolist())
        ends.append(off_centre(search.mean))
    assert np.median(ends) > 0.1


def test_only_the_order_of_values_matters() -> None:
    def stretched(search: PreferenceSearch, x: np.ndarray, values: np.ndarray) -> None:
        search.tell(x, values=np.exp(values) * 1e3)

    ours, theirs = (run(PreferenceSearch(Box(-5, 5, 2), seed=1), tell, 5) for tell in (by_values, stretched))
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    assert not (ours.mean == PreferenceSearch(Box(-5, 5, 2)).mean).any()


def test_a_shift_and_scale_of_the_space_change_nothing() -> None:
    small = PreferenceSearch(Unbounded(0, 1, 2), seed=3)
    large = PreferenceSearch(Unbounded([10, -20], [2.0, 2.0]), seed=3)
    for _ in range(20):
        x, y = small.ask(), large.ask()
        np.testing.assert_allclose(y, [10, -20] + 2 * x, rtol=1e-9, atol=1e-9)
        values = [sphere(point - 1) for point in x]
        small.tell(x, values=values)
        large.tell(y, values=values)


def test_an_optimum_in_a_corner_is_reached() -> None:
    search = PreferenceSearch(Box(-5, 5, 3), seed=4)
    for _ in range(120):
        x = search.ask()
        search.tell(x, values=x @ [1.0, -2.0, 0.5])
    assert search.result.value == pytest.approx(-17.5, abs=1e-6)


def minimise_schwefel(seed: int, restarts: int) -> PreferenceSearch:
    search = PreferenceSearch(Box(-500, 500, 2), seed=seed, start=[-300.0, 300.0], restarts=restarts)
    while search.num_judged < 10_000 and not search.stop() and (search.best is None or search.best[0] > 1e-6):
        x = search.ask()
        search.tell(x, values=[schwefel(point) for point in x])
    return search


def test_restarts_find_what_one_run_misses() -> None:
    for seed in (200, 201):
        search = minimise_schwefel(seed, restarts=9)
        assert search.best is not None and search.best[0] <= 1e-6 and search.result.restarts > 0
        assert search.population == search.first_population * 2**search.result.restarts
    alone = minimise_schwefel(201, restarts=0)
    assert alone.best is not None and alone.best[0] > 1e-6
    assert alone.stop() == "the values no longer change" and alone.result.restarts == 0


def test_without_values_it_stops_instead_of_restarting() -> None:
    search = PreferenceSearch(Box(-5, 5, 2), seed=0, sigma=0.01, start=OPTIMUM)
    while not search.stop():
        run(search, by_labels, 1)
    assert search.result.restarts == 0 and search.stop() == "the policy is a point"
    assert off_centre(search.mean) < 1e-18


def test_a_stopped_search_stays_where_it_is() -> None:
    search = PreferenceSearch(Box(-5, 5, 2), seed=0, restarts=0)
    while not search.stop():
        by_values(search, x := search.ask(), np.array([off_centre(point) for point in x]))
    mean = search.mean
    assert off_centre(mean) < 1e-15
    np.testing.assert_array_equal(run(search, by_values, 3).mean, mean)


MIXED: list[Tell] = [by_values, by_ranks, by_labels, by_pairs, only_bad]


@pytest.mark.parametrize("space", [Box([-5, -5], [5, 4]), Unbounded(0, 2, 2)])
@pytest.mark.parametrize("asked", [None, 2, 4, 14])
def test_a_saved_search_goes_on_bit_for_bit(space: Any, asked: int | None, tmp_path: Path) -> None:
    search = PreferenceSearch(space, PMPO(alpha=0.4), seed=5, population=6, covariance="full")
    for tell in MIXED:
        run(search, tell, 2, asked)
    pending = search.ask(3)
    search.save(tmp_path / "deep" / "search.json", extra={"note": [1, None]})
    again = PreferenceSearch.load(tmp_path / "deep" / "search.json")
    assert again.extra == {"note": [1, None]}
    for one in (search, again):
        one.tell(pending, labels=[1, None, -1])
        for tell in MIXED:
            run(one, tell, 3, asked)
    for name in ("num_judged", "steps", "runs", "reason", "population"):
        assert getattr(search, name) == getattr(again, name)
    np.testing.assert_array_equal(search.policy.covariance, again.policy.covariance)
    np.testing.assert_array_equal(search.ask(), again.ask())
    np.testing.assert_array_equal(search.result.x, again.result.x)
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "search.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 0}', "null"])
def test_a_broken_file_is_one_clear_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        PreferenceSearch.load(path)
    assert "\n" not in str(caught.value) and "search" in str(caught.value)


def test_a_file_with_a_broken_field_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    PreferenceSearch(Box(-1, 1, 2)).save(path)
    tree = json.loads(path.read_text())
    for name in tree:
        path.write_text(json.dumps({key: value for key, value in tree.items() if key != name}))
        with pytest.raises(UserError):
            PreferenceSearch.load(path)
    with pytest.raises(UserError):
        PreferenceSearch.load(tmp_path / "none.json")


def test_same_seed_same_bits() -> None:
    ours, theirs = (run(PreferenceSearch(Box(-5, 5, 2), seed=8), by_values, 10) for _ in range(2))
    np.testing.assert_array_equal(ours.policy.covariance, theirs.policy.covariance)
    other = run(PreferenceSearch(Box(-5, 5, 2), seed=9), by_values, 10)
    assert (ours.mean != other.mean).all()


def test_tells_in_parts_are_one_draw() -> None:
    """Two by two or all at once, values are ranked together and the step is the same."""
    whole, parts = (PreferenceSearch(Box(-5, 5, 2), seed=8, population=6) for _ in range(2))
    x = whole.ask()
    np.testing.assert_array_equal(np.concatenate([parts.ask(2) for _ in range(3)]), x)
    values = np.array([off_centre(point) for point in x])
    whole.tell(x, values=values)
    for place in (4, 0, 2):
        parts.tell(x[place : place + 2], values=values[place : place + 2])
    np.testing.assert_allclose(parts.policy.covariance, whole.policy.covariance, rtol=1e-12)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    assert whole.steps == parts.steps == 1


def test_points_that_were_not_asked_for_pull_but_not_far() -> None:
    search = PreferenceSearch(Box(-500, 500, 2), sigma=0.001, population=2)
    search.tell([[400.0, 400.0], [-1.0, 0.0]], values=[0.0, 1.0])
    limit = (np.sqrt(2) + 3) * search.sigma * 1000
    assert 0 < np.linalg.norm(search.mean) <= limit * 1.001


def test_result_says_what_it_is() -> None:
    search = PreferenceSearch(Box(-5, 5, 2), start=[1.0, 2.0])
    assert search.result.source == "mean" and search.result.value is None
    np.testing.assert_allclose(search.result.x, [1.0, 2.0])
    search.tell([[0.0, 0.0], [1.0, 1.0]], labels=[1, -1])
    assert search.result.source == "mean"
    search.tell([[0.0, 0.5], [1.0, 1.0]], values=[3.0, 2.0])
    assert search.result.source == "best value" and search.result.value == 2.0
    np.testing.assert_array_equal(search.result.x, [1.0, 1.0])
    assert search.result.num_judged == 4


def test_rosenbrock_in_five_dimensions() -> None:
    search = PreferenceSearch(Box(-5, 5, 5), seed=200)
    while search.num_judged < 20_000 and (search.best is None or search.best[0] > 1e-6):
        x = search.ask()
        search.tell(x, values=[rosenbrock(point) for point in x])
    np.testing.assert_allclose(search.result.x, np.ones(5), atol=0.02)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"population": 1}, "population"), ({"restarts": -1}, "restarts"), ({"sigma": 0.0}, "sigma"),
        ({"sigma": float("nan")}, "sigma"), ({"covariance": "round"}, "covariance"), ({"kl": "none"}, "kl"),
        ({"start": [9.0, 0.0]}, "outside"), ({"start": [0.0]}, "points must"),
        ({"objective": PMPO(alpha=0.0, beta=0.5)}, "unbounded"),
        ({"objective": PMPO(alpha=0.5, beta=0.0)}, "unbounded"),
        ({"objective": PMPO(regularizer="bc")}, "alpha and beta"),
        ({"objective": PMPO(score_temperature=1.0)}, "alpha and beta"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    from valence.search import search as module

    make = getattr(module.PreferenceSearch, "__init__")  # noqa: B009
    plain = getattr(make, "__wrapped__", make)
    search = object.__new__(PreferenceSearch)
    with pytest.raises(ValueError, match=message):
        plain(search, Box(-5, 5, 2), **options)


@pytest.mark.parametrize(
    "x, feedback, message",
    [
        ([[0, 0]], {}, "give exactly one of"), ([[0, 0]], {"values": [1], "labels": [1]}, "give exactly one of"),
        ([[0, 0]], {"values": [1, 2]}, "one number for each"), ([[0, 0]], {"values": [np.nan]}, "NaN"),
        ([[0, 9]], {"values": [1]}, "outside"), ([[0, np.inf]], {"values": [1]}, "finite"),
        ([0, 0], {"values": [1]}, "points must"), ([["a", 0]], {"values": [1]}, "points must"),
        ([[0, 0]], {"labels": ["good"]}, "a label is"), ([[0, 0]], {"labels": True}, None),
        ([[0, 0], [1, 1]], {"pairs": [(0, 2)]}, "`pairs` must be"), ([[0, 0]], {"ranks": None}, "give exactly one of"),
    ],
)  # fmt: skip
def test_bad_tells_are_refused_and_change_nothing(x: Any, feedback: dict[str, Any], message: str | None) -> None:
    search = PreferenceSearch(Box(-5, 5, 2))
    if message is None:
        search.tell(x, **feedback)
        assert search.num_judged == 1
        return
    with pytest.raises(ValueError, match=message):
        search.tell(x, **feedback)
    assert search.num_judged == 0 and search.draw.num_judged == 0 and search.best is None


def test_asking_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        PreferenceSearch(Box(-5, 5, 2)).ask(0)


def test_infinite_values_are_the_worst() -> None:
    search = PreferenceSearch(Box(-5, 5, 2), seed=3)
    for _ in range(60):
        x = search.ask()
        search.tell(x, values=[off_centre(point) if point[0] < 2 else np.inf for point in x])
    assert search.result.value is not None and search.result.value < 1e-4

"""Conversions by hand: every group, every number, every note."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valence.data.groups import Group, groups_for, split_groups
from valence.data.groups import group as group_file
from valence.data.records import Record
from valence.errors import UserError
from valence.feedback.labelling import label_halves
from valence.types import Rewards


def label(prompt: str, completion: str, sign: float, **rest: Any) -> Record:
    return Record("label", prompt, (completion,), (sign,), **rest)


def score(prompt: str, completion: str, value: float, **rest: Any) -> Record:
    return Record("score", prompt, (completion,), (value,), scored=True, **rest)


def pair(prompt: str, chosen: str, rejected: str, values: tuple[float, ...] = (), **rest: Any) -> Record:
    return Record("pair", prompt, (chosen, rejected), values, scored=bool(values), **rest)


def ranking(prompt: str, values: tuple[float, ...], *, scored: bool = True) -> Record:
    return Record("ranking", prompt, tuple("abcdefgh"[: len(values)]), values, scored=scored)


def signs(groups: list[Group]) -> list[tuple[str, str, int]]:
    """(prompt, completion, sign) of K = 1 groups."""
    return [(str(g.prompt), str(g.completions[0]), g.sign[0]) for g in groups if g.sign and len(g.completions) == 1]


class TestGroup:
    def test_needs_exactly_one_kind_of_feedback_of_the_right_length(self) -> None:
        with pytest.raises(ValueError, match="exactly one"):
            Group("a", ("b",))
        with pytest.raises(ValueError, match="exactly one"):
            Group("a", ("b",), sign=(1,), reward=(1.0,))
        with pytest.raises(ValueError, match="1 completions but 2 values"):
            Group("a", ("b",), reward=(1.0, 2.0))


class TestLabels:
    def test_labels_are_one_a_context_and_keep_where_they_came_from(self) -> None:
        rows = [label("p", "a", 1.0, file="f", line=3, split="train"), label("p", "a", -1.0), label("p", "b", 0.0)]
        groups, notes = groups_for(rows, "labels")
        assert groups == [
            Group("p", ("a",), sign=(1,), file="f", line=3, split="train"),
            Group("p", ("a",), sign=(-1,)),
            Group("p", ("b",), sign=(0,)),
        ]
        assert notes == ["1 unlabelled completions were kept (for the KL or behaviour-cloning term only)"]

    def test_pairs_become_accepted_and_rejected_and_ties_are_dropped(self) -> None:
        groups, notes = groups_for(
            [pair("p", "a", "b"), pair("p", "a", "c", (2.0, 1.0)), pair("q", "a", "b", (1.0, 1.0))], "labels"
        )
        assert signs(groups) == [("p", "a", 1), ("p", "b", -1), ("p", "a", 1), ("p", "c", -1)]
        assert notes == [
            "2 pairs became 2 accepted and 2 rejected completions (which two form a pair is lost)",
            "1 pairs with equal scores were dropped (neither is preferred)",
        ]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ((4.0, 1.0, 3.0, 2.0), {"a": 1, "c": 1, "b": -1, "d": -1}),
            ((3.0, 2.0, 1.0), {"a": 1, "b": 1, "c": -1}),  # the middle beats half of the others: accepted
            ((1.0, 1.0, 0.0), {"a": 1, "b": 1, "c": -1}),
            ((1.0, 0.0, 0.0), {"a": 1, "b": -1, "c": -1}),
            ((3.0, 1.0, 1.0, 1.0), {"a": 1, "b": -1, "c": -1, "d": -1}),  # b beats 1 of 3 (ties half)
            ((4.0, 3.0, 3.0, 1.0), {"a": 1, "b": 1, "c": 1, "d": -1}),  # b beats 1.5 of 3
            ((1.0, 2.0, 2.0, 3.0), {"a": -1, "b": 1, "c": 1, "d": 1}),
            ((10.0, 1.0, 1.0, 0.0), {"a": 1, "b": 1, "c": 1, "d": -1}),  # the order decides, not the mean
        ],
    )
    def test_rankings_split_in_halves(self, values: tuple[float, ...], expected: dict[str, int]) -> None:
        groups, notes = groups_for([ranking("p", values)], "labels")
        assert {completion: sign for _, completion, sign in signs(groups)} == expected
        assert notes == ["1 rankings became accepted (the better half) and rejected completions (the order is lost)"]

    def test_the_signs_are_those_of_the_feedback_room(self) -> None:
        rows = [(4.0, 1.0, 3.0, 2.0), (1.0, 2.0, 2.0, 3.0), (2.0, 2.0, 1.0), (1.0, 0.0, 0.0), (5.0, 4.0)]
        groups, _ = groups_for([ranking(str(row), row) for row in rows], "labels")
        value = torch.tensor([[*row, *[torch.nan] * (4 - len(row))] for row in rows])
        labels = label_halves(Rewards(value, ~value.isnan()))
        assert [sign for _, _, sign in signs(groups)] == labels.sign[labels.present].tolist()

    def test_where_no_row_has_a_label_all_are_kept_and_that_is_said(self) -> None:
        groups, notes = groups_for([label("p", "a", 0.0), label("q", "b", 0.0), Record("prompt", "r")], "labels")
        assert signs(groups) == [("p", "a", 0), ("q", "b", 0)]
        assert notes[1:] == ["2 completions were kept, and none of them has a label"]

    def test_scores_by_their_prompts_mean_else_by_the_data_sets_median(self) -> None:
        # p has two distinct scores with mean 5: 5 or more accepts. q and r have one distinct score each: the data
        # set's median of (2, 5, 8, 1, 1, 9) is 3.5.
        rows = [score("p", "a", 2.0), score("p", "b", 5.0), score("p", "c", 8.0)]
        rows += [score("q", "a", 1.0), score("q", "b", 1.0), score("r", "a", 9.0)]
        groups, notes = groups_for(rows, "labels")
        assert [sign for _, _, sign in signs(groups)] == [-1, 1, 1, -1, -1, 1]
        assert notes == [
            "1 scores became rejected by its prompt's mean (the size of the score is lost)",
            "2 scores became accepted by its prompt's mean (the size of the score is lost)",
            "2 scores became rejected by the data set's median (the size of the score is lost)",
            "1 scores became accepted by the data set's median (the size of the score is lost)",
        ]

    def test_what_has_no_spread_is_dropped_and_refused_if_nothing_is_left(self) -> None:
        groups, notes = groups_for([label("p", "a", 1.0), score("p", "a", 2.0), ranking("p", (1.0, 1.0))], "labels")
        assert signs(groups) == [("p", "a", 1)]
        assert notes == [
            "1 scores were dropped: they are all equal",
            "1 rankings without any difference were dropped",
        ]
        with pytest.raises(UserError, match=r"^no feedback can become labels: 2 scores were dropped"):
            groups_for([score("p", "a", 2.0), score("q", "b", 2.0)], "labels")

    def test_a_thousand_rows_are_converted_in_few_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rankings of several lengths, scores of one prompt and pairs: batched, without a call of torch for each."""
        rows = [ranking(str(i), tuple(float(i * k % 7) for k in range(3 + i % 5))) for i in range(500)]
        rows += [score("", str(i), float(i % 11)) for i in range(300)] + [pair(str(i), "a", "b") for i in range(200)]
        made, tensor = [0], torch.tensor

        def counted(*args: Any, **options: Any) -> torch.Tensor:
            made[0] += 1
            return tensor(*args, **options)

        monkeypatch.setattr(torch, "tensor", counted)
        for takes in ("labels", "rewards", "preferences"):
            groups_for(rows, takes)
        assert 0 < made[0] < 50


class TestRewards:
    def test_one_identical_prompt_is_one_context_and_duplicates_stay(self) -> None:
        rows = [
            score("p", "a", 1.0, line=4),
            score("q", "a", 2.0),
            score("p", "a", 3.0),
            pair("p", "b", "c", (5.0, 4.0)),
        ]
        rows += [ranking("q", (7.0, 8.0))]
        groups, notes = groups_for(rows, "rewards")
        assert groups == [
            Group("p", ("a", "a", "b", "c"), reward=(1.0, 3.0, 5.0, 4.0), line=4),
            Group("q", ("a", "a", "b"), reward=(2.0, 7.0, 8.0)),
        ]
        assert notes == [
            "1 scored pairs became the rewards of their completions",
            "1 scored rankings became the rewards of their completions",
        ]

    def test_labels_pairs_and_ranks_get_made_up_rewards_and_that_is_said(self) -> None:
        rows = [label("p", "a", 1.0), label("p", "b", -1.0), label("p", "c", 0.0), pair("q", "a", "b")]
        rows += [pair("r", "a", "b", margin=3.0), ranking("s", (-1.0, -3.0, -2.0, -3.0), scored=False)]
        rows += [ranking("t", (-1.0, -1.0), scored=False), score("u", "a", 9.0)]
        groups, notes = groups_for(rows, "rewards")
        assert [group.reward for group in groups] == [
            (1.0,),
            (-1.0,),
            (1.0, -1.0),
            (1.5, -1.5),
            # places 3, 0.5 (two share 0 and 1), 2, 0.5 of 0..3, onto [-1, 1] by 2 place / 3 - 1
            pytest.approx((1.0, -2 / 3, 1 / 3, -2 / 3)),
            (9.0,),
        ]
        assert notes == [
            "2 labels became rewards of +1 and -1",
            "1 unlabelled completions were dropped: they have no reward",
            "1 pairs without scores became rewards of +1 and -1 (their gap is not known)",
            "1 pairs with a margin became rewards of plus and minus half of it (only their gap is known)",
            "1 rankings without scores became evenly spaced rewards from +1 to -1 (their gaps are not known)",
            "1 rankings without any difference were dropped",
            "some rewards are scores of the data and others were made of labels or ranks: their scales differ",
        ]

    def test_a_large_prompt_is_several_contexts_and_splits_do_not_mix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(group_file, "MAX_ACTIONS", 2)
        rows = [score("", str(index), float(index)) for index in range(5)] + [score("", "x", 9.0, split="test")]
        groups, notes = groups_for(rows, "rewards")
        assert [group.completions for group in groups] == [("0", "1"), ("2", "3"), ("4",), ("x",)]
        assert notes == ["2 contexts were added for prompts with more than 2 completions (contexts are not compared)"]


class TestPreferences:
    def test_pairs_keep_their_margin_and_identical_completions_are_one(self) -> None:
        rows = [pair("p", "a", "b"), pair("p", "c", "a", (5.0, 3.0)), pair("q", "a", "b", margin=2.0, line=7)]
        groups, notes = groups_for(rows, "preferences")
        assert groups == [
            Group("p", ("a", "b", "c"), wins=((0, 1, 1.0, None), (2, 0, 1.0, 2.0))),
            Group("q", ("a", "b"), wins=((0, 1, 1.0, 2.0),), line=7),
        ]
        assert notes == []

    def test_annotators_who_disagree_give_a_win_rate(self) -> None:
        rows = [pair("p", "a", "b", (4.0, 1.0)), pair("p", "b", "a", (3.0, 1.0)), pair("p", "b", "a", (3.0, 2.0))]
        groups, notes = groups_for(rows, "preferences")
        # b beats a in two of three; b's scores minus a's: -3, 2, 1, mean 0.
        assert groups == [Group("p", ("a", "b"), wins=((1, 0, 1 - 1 / 3, 0.0),))]
        assert notes == ["1 pairs were judged both ways: their win probability is the share of judgements"]

    def test_without_a_prompt_only_what_is_compared_is_together(self) -> None:
        rows = [pair("", "a", "b"), pair("", "c", "d"), pair("", "e", "b"), pair("", "b", "f"), pair("", "d", "c")]
        apart, _ = groups_for(rows, "preferences")
        assert [group.completions for group in apart] == [("a", "b", "e", "f"), ("c", "d")]
        assert apart[0].wins == ((0, 1, 1.0, None), (2, 1, 1.0, None), (1, 3, 1.0, None))
        assert apart[1].wins == ((0, 1, 0.5, None),)
        together, _ = groups_for([pair("x", *record.completions) for record in rows], "preferences")
        assert len(together) == 1 and len(together[0].completions) == 6

    def test_rankings_and_scores_give_every_distinct_pair(self) -> None:
        rows = [ranking("p", (3.0, 1.0, 3.0)), ranking("q", (-1.0, -2.0), scored=False)]
        rows += [score("r", "a", 1.0), score("r", "b", 4.0), score("s", "a", 1.0)]
        groups, notes = groups_for(rows, "preferences")
        assert groups == [
            Group("p", ("a", "b", "c"), wins=((0, 1, 1.0, 2.0), (2, 1, 1.0, 2.0))),
            Group("q", ("a", "b"), wins=((0, 1, 1.0, None),)),
            Group("r", ("b", "a"), wins=((0, 1, 1.0, 3.0),)),
        ]
        assert notes == [
            "2 rankings became all pairs of completions of different rank",
            "2 scores became comparisons within their prompt",
            "1 scores were dropped: the identical prompt has no other score to compare with",
        ]

    def test_labels_only_within_an_identical_prompt(self) -> None:
        rows = [label("p", "a", 1.0), label("p", "b", -1.0), label("p", "c", -1.0), label("q", "a", 1.0)]
        rows += [label("p", "d", 0.0)]
        groups, notes = groups_for(rows, "preferences")
        assert groups == [Group("p", ("a", "b", "c"), wins=((0, 1, 1.0, None), (0, 2, 1.0, None)))]
        assert notes == [
            "1 unlabelled completions were dropped: they beat no other",
            "3 labels became comparisons within their prompt",
            "1 labels were dropped: the identical prompt has no opposite label to compare with",
        ]

    def test_labels_across_prompts_are_refused_with_the_reason(self) -> None:
        with pytest.raises(
            UserError,
            match=r"no prompt has both an accepted and a rejected completion.*`method=\"pmpo\"` or `method=\"kto\"`",
        ):
            groups_for([label("p", "a", 1.0), label("q", "b", -1.0)], "preferences")
        with pytest.raises(UserError, match="no prompt has both"):
            groups_for([label("p", "a", 1.0), label("p", "b", 1.0)], "preferences")

    def test_a_full_context_of_labels_has_both_signs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(group_file, "MAX_ACTIONS", 4)
        rows = [label("", f"a{i}", 1.0) for i in range(4)] + [label("", f"r{i}", -1.0) for i in range(4)]
        groups, _ = groups_for(rows, "preferences")
        assert [set(group.completions) for group in groups] == [{"a0", "r0", "a1", "r1"}, {"a2", "r2", "a3", "r3"}]

    def test_ties_and_a_completion_against_itself_are_dropped_and_counted(self) -> None:
        rows = [pair("p", "a", "b", (1.0, 1.0)), label("p", "a", 1.0), label("p", "a", -1.0), pair("q", "a", "b")]
        groups, notes = groups_for(rows, "preferences")
        assert [group.prompt for group in groups] == ["q"]
        assert "1 pairs with equal scores were dropped (neither is preferred)" in notes
        assert "1 comparisons of a completion with itself were dropped" in notes


@pytest.mark.parametrize("takes", ["labels", "rewards", "preferences"])
def test_prompts_are_left_out_with_a_count_and_alone_refused(takes: Any) -> None:
    prompts = [Record("prompt", "p"), Record("prompt", "q")]
    said = "2 rows with only a prompt were dropped (valence improve uses them)"
    groups, notes = groups_for([*prompts, pair("p", "a", "b")], takes)
    assert groups and notes[0] == said
    with pytest.raises(UserError) as caught:
        groups_for(prompts, takes)
    assert str(caught.value) == f"no feedback can become {takes}: {said}"


class TestSplit:
    MANY = tuple(Group(f"prompt {i % 200}", (f"answer {i}",), sign=(1,)) for i in range(400))

    def test_the_rows_own_marks_are_kept(self) -> None:
        marks = ["train", None, "heldout", "test", "Validation", "eval"]
        groups = [Group("p", (str(i),), sign=(1,), split=mark) for i, mark in enumerate(marks)]
        train, heldout = split_groups(groups, fraction=0.0)
        assert [group.split for group in train] == ["train", None]
        assert [group.split for group in heldout] == ["heldout", "test", "Validation", "eval"]

    def test_about_the_fraction_and_no_prompt_on_both_sides(self) -> None:
        train, heldout = split_groups(self.MANY, fraction=0.2)
        assert len(train) + len(heldout) == 400 and 50 <= len(heldout) <= 110
        assert not {group.prompt for group in train} & {group.prompt for group in heldout}

    def test_order_and_more_data_move_nothing_across(self) -> None:
        _, heldout = split_groups(self.MANY, fraction=0.2)
        _, turned = split_groups(self.MANY[::-1], fraction=0.2)
        more = tuple(Group(f"new {i}", ("x",), sign=(1,)) for i in range(100))
        _, grown = split_groups(self.MANY + more, fraction=0.2)
        assert turned == heldout[::-1]
        assert [group for group in grown if group not in more] == heldout

    def test_another_seed_is_another_choice(self) -> None:
        assert split_groups(self.MANY, fraction=0.2, seed=1)[1] != split_groups(self.MANY, fraction=0.2)[1]

    def test_few_prompts_are_split_by_their_completions(self) -> None:
        groups = [Group("", (str(i % 50),), sign=(1,)) for i in range(100)]
        train, heldout = split_groups(groups, fraction=0.3)
        assert train and heldout
        assert not {group.completions for group in train} & {group.completions for group in heldout}

    @pytest.mark.parametrize("fraction", [0.001, 0.999])
    def test_neither_side_is_left_empty(self, fraction: float) -> None:
        train, heldout = split_groups(self.MANY[:2], fraction=fraction)
        assert len(train) == len(heldout) == 1

    def test_nothing_is_held_out_of_one_group_or_at_fraction_zero(self) -> None:
        assert split_groups(self.MANY[:1], fraction=0.5) == ([self.MANY[0]], [])
        assert split_groups(self.MANY, fraction=0.0) == (list(self.MANY), [])

    @pytest.mark.parametrize("fraction", [-0.1, 1.0])
    def test_the_fraction_is_checked(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="must be at least 0 and less than 1"):
            split_groups(self.MANY, fraction=fraction)


VALUES = st.sampled_from((0.0, 1.0, 2.0))
SPLITS = st.sampled_from((None, "train", "test"))


@st.composite
def a_record(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a record (made into one in the test: its type checks use `random`, which a strategy must not)."""
    shape, texts = draw(st.sampled_from(("label", "score", "pair", "ranking", "prompt"))), draw(st.permutations("abc"))
    where = {"shape": shape, "prompt": draw(st.sampled_from("pq")), "split": draw(SPLITS)}
    if shape == "label":
        return {**where, "completions": (texts[0],), "values": (draw(st.sampled_from((-1.0, 0.0, 1.0))),)}
    if shape == "score":
        return {**where, "completions": (texts[0],), "values": (draw(VALUES),), "scored": True}
    if shape == "pair":
        values = draw(st.sampled_from(((), (1.0, 1.0), (2.0, 1.0))))
        return {**where, "completions": tuple(texts[:2]), "values": values, "scored": bool(values)}
    if shape == "ranking":
        values = tuple(draw(st.lists(VALUES, min_size=3, max_size=3)))
        return {**where, "completions": tuple(texts), "values": values, "scored": draw(st.booleans())}
    return where


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(a_record(), max_size=8), takes=st.sampled_from(("labels", "rewards", "preferences")))
def test_any_records_convert_or_are_refused_and_nothing_is_invented(rows: list[dict[str, Any]], takes: Any) -> None:
    records = [Record(**row) for row in rows]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(group_file, "MAX_ACTIONS", 4)
            groups, _ = groups_for(records, takes)
    except UserError as error:
        assert "\n" not in str(error)
        return
    known = {(record.prompt, record.split, text) for record in records for text in record.completions}
    assert {(group.prompt, group.split, text) for group in groups for text in group.completions} <= known
    for group in groups:
        pairs = [frozenset((i, j)) for i, j, _, _ in group.wins or ()]
        assert len(set(pairs)) == len(pairs) and all(len(two) == 2 for two in pairs)
        assert all(0.5 <= p <= 1 and max(i, j) < len(group.completions) for i, j, p, _ in group.wins or ())
    if takes != "preferences":
        most = sum(len(record.completions) for record in records)
        assert sum(len(group.completions) for group in groups) <= most

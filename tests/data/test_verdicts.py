"""The sign of every kind of column: read rightly, or refused with the values it holds. Never guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from valence.data.formats.verdicts import LABEL_SIDES, SCHEMES, WINNER_SIDES, LabelRule
from valence.data.load import Loaded
from valence.data.records import Record
from valence.errors import UserError

Load = Callable[..., Loaded]

LABELS: list[tuple[str, str, list[object], dict[str, Any], list[int]]] = [
    # (what, the file's column, its values, options, the right reading: +1, -1, 0 unlabelled)
    ("booleans", "label", [True, False, None], {}, [1, -1, 0]),
    ("booleans as text", "label", ["True", "false", "TRUE"], {}, [1, -1, 1]),
    ("one and zero", "label", [1, 0, 1.0], {}, [1, -1, 1]),
    ("one and zero as text", "label", ["1", "0", ""], {}, [1, -1, 0]),
    ("plus and minus one", "label", ["+1", -1, 1], {}, [1, -1, 1]),
    ("only ones", "label", [1, 1, 1], {}, [1, 1, 1]),
    ("only zeros", "label", [0, 0, 0], {}, [-1, -1, -1]),
    ("yes and no", "label", ["Yes", "no", " YES "], {}, [1, -1, 1]),
    ("y and n", "label", ["y", "N", "y"], {}, [1, -1, 1]),
    ("up and down", "thumb", ["up", "Down", "UP"], {}, [1, -1, 1]),
    ("thumbs in words", "thumbs", ["thumbs up", "Thumbs_Down", "thumb-up"], {}, [1, -1, 1]),
    ("thumbs of any skin", "label", ["👍🏽", "👎🏿", "👍"], {}, [1, -1, 1]),
    ("thumbs by shortcode", "label", [":thumbsup:", ":-1:", ":+1:"], {}, [1, -1, 1]),
    ("upvotes", "vote", ["upvote", "downvote", "Upvoted"], {}, [1, -1, 1]),
    ("good and bad", "label", ["good", "BAD", "Good"], {}, [1, -1, 1]),
    ("likes", "label", ["like", "dislike", "Liked"], {}, [1, -1, 1]),
    ("accepted", "label", ["accepted", "rejected", "accept"], {}, [1, -1, 1]),
    ("approved", "label", ["approved", "rejected", "approve"], {}, [1, -1, 1]),
    ("check marks", "label", ["✓", "✗", "✔"], {}, [1, -1, 1]),
    ("check boxes", "label", ["✅", "❌", "✅"], {}, [1, -1, 1]),
    ("correct", "label", ["correct", "incorrect", "Correct"], {}, [1, -1, 1]),
    ("helpful", "label", ["helpful", "not helpful", "unhelpful"], {}, [1, -1, -1]),
    ("passed", "label", ["pass", "fail", "passed"], {}, [1, -1, 1]),
    ("words in a column of ratings", "rating", ["up", "down", "up"], {}, [1, -1, 1]),
    ("our own sign", "sign", [1, 0, -1], {}, [1, 0, -1]),
    ("named values", "label", ["fine", "awful", "fine"], {"labels": "accept=fine,reject=awful"}, [1, -1, 1]),
    ("a yes that means bad", "label", ["yes", "no", "yes"], {"labels": "invert"}, [-1, 1, -1]),
    ("a yes that means bad, by values", "label", ["yes", "no", "no"], {"labels": "accept=no,reject=yes"}, [-1, 1, 1]),
    ("a bad name, stated", "is_toxic", ["yes", "no", "no"], {"labels": "accept=no,reject=yes"}, [-1, 1, 1]),
    ("a bad name, inverted", "Is Toxic", [True, False, True], {"labels": "invert"}, [-1, 1, -1]),
    ("a bad name that is no verdict against", "error_free", [1, 0, 1], {"labels": "as-is"}, [1, -1, 1]),
    ("stars by a bound", "label", [5, 1, 4], {"labels": "accept>=4,reject<=2"}, [1, -1, 1]),
    ("a column of scores by a bound", "rating", [5, 1, "4"], {"labels": "accept>=4,reject<=2"}, [1, -1, 1]),
    ("several values of a side", "label", ["a", "b", "c"], {"labels": "accept=a|c,reject=b"}, [1, -1, 1]),
    ("only what to ignore", "label", ["up", "down", "up"], {"labels": "ignore=spam"}, [1, -1, 1]),
    ("several values, with commas", "label", ["a", "b", "c"], {"labels": "accept=a,c,reject=b"}, [1, -1, 1]),
]  # fmt: skip

REFUSED: list[tuple[str, str, list[object], dict[str, Any], tuple[str, ...]]] = [
    # (what, the file's column, its values, options, what the message says)
    ("stars as labels", "label", [1, 2, 3, 4, 5], {}, ("'5' in 1 rows", "score=label", "accept>3,reject<3")),
    ("two ends of a scale", "label", [1, 5], {}, ("'1' in 1 rows", "'5' in 1 rows", "score=label")),
    ("three classes of numbers", "label", [1, 0, -1], {}, ("'0' in 1 rows", "'-1' in 1 rows", "ignore=VALUES")),
    ("three classes of words", "label", ["good", "bad", "neutral"], {}, ("'neutral' in 1 rows", "accept=VALUES")),
    ("two schemes", "label", ["yes", "rejected"], {}, ("'yes' in 1 rows", "'rejected' in 1 rows")),
    ("words of nobody's list", "label", ["meh", "wow"], {}, ("'meh' in 1 rows", "`labels`")),
    ("probabilities", "label", [0.3, 0.9], {}, ("'0.3' in 1 rows", "score=label")),
    ("a column against the answer", "is_toxic", ["yes", "no"], {}, ("is_toxic", "invert", "as-is")),
    ("in camel case", "hasErrors", [True, False], {}, ("hasErrors", "invert")),
    ("a rule that leaves a value out", "label", ["a", "b", "c"], {"labels": "accept=a,reject=b"}, ("'c' in 1 rows",)),
    ("numbers and words as ratings", "rating", [4, "good"], {}, ("numbers", "'good'")),
    ("two units", "rating", ["80%", "4 stars"], {}, ("80%", "4 stars")),
    ("a loss as a score", "loss", [0.5, 2.5], {"columns": {"score": "loss"}}, ("loss", "invert")),
    ("a rank as a score", "rank", [1, 2], {"columns": {"score": "rank"}}, ("rank", "invert")),
]  # fmt: skip

WINNERS: list[tuple[str, list[object], dict[str, Any], list[str]]] = [
    # (what, the values of `winner`, options, the better answer of each row that is read)
    ("letters", ["A", "b", "a"], {}, ["one", "two", "one"]),
    ("numbers", [1, "2", 1], {}, ["one", "two", "one"]),
    ("sides", ["left", "Right", "left"], {}, ["one", "two", "one"]),
    ("fields", ["model_a", "model_b", "Model A"], {}, ["one", "two", "one"]),
    ("models' names", ["gpt", "llama", "gpt"], {}, ["one", "two", "one"]),
    ("the better text", ["one", "two", "two"], {}, ["one", "two", "two"]),
    ("ties and both bad", ["A", "tie", "both bad"], {}, ["one"]),
    ("probabilities", [0.9, 0.2, 1], {}, ["one", "two", "one"]),
    ("votes", [["A", "A", "B"], ["B", "B", "A"], ["A"]], {}, ["one", "two", "one"]),
    ("votes in one text", ["A|A|B", "B|B", "A|B"], {}, ["one", "two"]),
    ("zero and one, said", [0, 1, 0], {"labels": "a=0,b=1"}, ["one", "two", "one"]),
    ("inverted", ["A", "B", "A"], {"labels": "invert"}, ["two", "one", "two"]),
]


def rows_of(column: str, values: list[object]) -> list[dict[str, object]]:
    return [{"prompt": f"p{place}", "completion": "an answer", column: value} for place, value in enumerate(values)]


def options_of(column: str, options: dict[str, Any]) -> dict[str, Any]:
    """A column with a name of its own is mapped to the label, as a user would."""
    known = ("label", "thumb", "thumbs", "vote", "rating", "sign")
    return options if column in known or "columns" in options else {"columns": {"label": column}} | options


@pytest.mark.parametrize(("what", "column", "values", "options", "wanted"), LABELS, ids=[row[0] for row in LABELS])
def test_labels_have_the_right_sign(
    load_rows: Load, what: str, column: str, values: list[object], options: dict[str, Any], wanted: list[int]
) -> None:
    loaded = load_rows(*rows_of(column, values), **options_of(column, options))
    assert [record.values for record in loaded.records] == [(float(sign),) for sign in wanted]
    assert {record.shape for record in loaded.records} == {"label"}
    assert not loaded.problems and not loaded.skipped


@pytest.mark.parametrize(("what", "column", "values", "options", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_values_without_a_clear_meaning_are_refused(
    load_rows: Load, what: str, column: str, values: list[object], options: dict[str, Any], said: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(*rows_of(column, values), **options_of(column, options))
    assert "\n" not in str(caught.value)
    for part in (column, *said):
        assert part in str(caught.value)


@pytest.mark.parametrize(("what", "values", "options", "wanted"), WINNERS, ids=[row[0] for row in WINNERS])
def test_the_winner_of_two_answers(
    load_rows: Load, what: str, values: list[object], options: dict[str, Any], wanted: list[str]
) -> None:
    rows = [
        {"prompt": f"p{place}", "a": "one", "b": "two", "model_a": "gpt", "model_b": "llama", "winner": value}
        for place, value in enumerate(values)
    ]
    loaded = load_rows(*rows, **options)
    assert [record.completions[0] for record in loaded.records] == wanted
    assert {record.shape for record in loaded.records} == {"pair"}
    assert len(loaded.records) + sum(loaded.skipped.values()) == len(rows) and not loaded.problems


@pytest.mark.parametrize("values", [[0, 1], ["x", "y"], ["A", "left"], [1, 2, 0.5]])
def test_a_winner_that_names_neither_clearly_is_refused(load_rows: Load, values: list[object]) -> None:
    with pytest.raises(UserError, match=r"winner holds .* it is not clear which of two answers they name"):
        load_rows(*({"prompt": "p", "a": "one", "b": "two", "winner": value} for value in values))


def test_a_winner_by_mapped_columns_and_rates_of_votes(load_rows: Load) -> None:
    columns = {"prompt": "Question", "a": "first reply", "b": "second reply", "winner": "voted"}
    row = {"question": "q", "First Reply": "one", "Second Reply": "two", "Voted": ["left", "left", "right", "left"]}
    (record,) = load_rows(row, columns=columns).records
    assert (record.prompt, record.completions, record.rate) == ("q", ("one", "two"), 0.75)


def test_stars_units_and_decimal_commas_are_scores(load_rows: Load) -> None:
    for values, wanted in [
        (["★★★★☆", "★☆☆☆☆"], [4, 1]), (["4 stars", "1 star"], [4, 1]), (["80%", "5 %"], [0.8, 0.05]),
        (["4/5", "1/5"], [0.8, 0.2]), (["3,5", "1"], [3.5, 1]),
    ]:  # fmt: skip
        loaded = load_rows(*rows_of("rating", list(values)))
        assert [record.values[0] for record in loaded.records] == wanted
        assert {record.shape for record in loaded.records} == {"score"}


def test_scores_and_pairs_can_be_inverted(load_rows: Load) -> None:
    lost = {"prompt": "p", "completion": "c", "loss": 2.5}
    (score,) = load_rows(lost, columns={"score": "loss"}, labels="invert").records
    assert score.values == (-2.5,)
    two = {"prompt": "p", "chosen": "c", "rejected": "d", "score_chosen": 1, "score_rejected": 0}
    (pair,) = load_rows(two, labels="invert").records
    assert pair.completions == ("d", "c") and pair.values == (-0.0, -1.0)


def test_ignored_values_are_counted_and_their_rows_are_not_learned_from(load_rows: Load) -> None:
    loaded = load_rows(*rows_of("label", ["a", "b", "c", "c"]), labels="accept=a,reject=b,ignore=c")
    assert len(loaded.records) == 2 and sum(loaded.skipped.values()) == 2 and loaded.rows == 4
    others = load_rows(*rows_of("label", ["Like", "spam", "Dislike"]), labels="ignore=Spam")
    assert [record.values[0] for record in others.records] == [1, -1] and sum(others.skipped.values()) == 1
    between = load_rows(*rows_of("label", [5, 3, 1]), labels="accept>=4,reject<=2")
    assert [record.values[0] for record in between.records] == [1, -1] and sum(between.skipped.values()) == 1


def test_a_mapped_role_that_no_layout_reads_is_an_error(load_rows: Load) -> None:
    rows = [{"p": "a", "x": "b", "y": "c", "w": "x"}]
    with pytest.raises(UserError, match=r"label=w.*read as pair, which does not use label"):
        load_rows(*rows, columns={"prompt": "p", "chosen": "x", "rejected": "y", "label": "w"})


@pytest.mark.parametrize("text", ["maybe", "accept", "accept=a,reject=a", "accept>=x", "good=1"])
def test_a_rule_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="`labels`"):
        LabelRule.parse(text)


def test_no_spelling_has_two_meanings() -> None:
    sides = [(side, sign) for pair in SCHEMES for side, sign in zip(pair, (1, -1), strict=True)]
    words = [(each, sign) for side, sign in sides for each in side.split()]
    assert len({each for each, _ in words}) == len(set(words))
    assert all(LABEL_SIDES[each] == sign for each, sign in words)
    assert set(WINNER_SIDES.values()) == {1, -1}


def test_the_record_of_a_vote_keeps_the_row(load_rows: Load) -> None:
    (record,) = load_rows({"prompt": "p", "a": "one", "b": "two", "winner": "b", "who": "ann"}).records
    assert record == Record("pair", "p", ("two", "one"), file=record.file, line=1, columns={"who": "ann"})

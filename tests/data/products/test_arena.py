"""Chatbot Arena's files and FastChat's logs, made from their documented formats."""

import pytest

from valence.data.products import arena

TIE, BAD, SAME, EMPTY = "a tie", "both are bad", "both answers are the same", "an empty answer"
DIFFER = "the two answers follow different earlier turns"
SKIPPED = {
    "2023-11-14-conv.json": {"an event that is no vote": 3, TIE: 1, BAD: 1, EMPTY: 1},
    "arena_100k.jsonl": {BAD: 1, TIE: 1},
    "arena_140k.jsonl": {TIE: 1, BAD: 1, "an image": 1, DIFFER: 1},
    "arena_55k.csv": {TIE: 1, DIFFER: 1, EMPTY: 2, "no winner": 1},
    "chatbot_arena_conversations.json": {TIE: 1, BAD: 1, DIFFER: 1, SAME: 1},
    "mt_bench_human.jsonl": {DIFFER: 1, TIE: 1, "judged by a model": 1},
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading = read(arena, f"arena/{name}")
    assert not agrees(reading, expected(f"arena/{name}"))
    assert reading.skipped == SKIPPED[name]
    assert not reading.refused and not reading.unmatched


def test_models_and_judges_are_kept_and_addresses_are_not(read):
    row = read(arena, "arena/chatbot_arena_conversations.json").rows[1]
    assert (row["chosen_model"], row["rejected_model"], row["annotator"]) == ("beta-13b", "alpha-7b", "arena_user_12")
    logged = read(arena, "arena/2023-11-14-conv.json").rows
    assert logged[2]["chosen_model"] == "alpha-7b" and logged[3]["chosen_model"] == "beta-13b"
    assert "10.0.0" not in str(logged)


def battle(**changes):
    sides = {f"conversation_{side}": [turn("user", "Hi"), turn("assistant", side)] for side in "ab"}
    return {"winner": "model_a", "model_a": "m", "model_b": "n", **sides, **changes}


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"winner": "model_c"}, "winner is none of model_a, model_b, tie and both_bad"),
        ({"turn": 2}, "turn is 2, and the conversation has 1 answers"),
        ({"conversation_a": "not JSON"}, "text that is not JSON"),
        ({"conversation_a": [turn("user", "Hi")]}, "does not end with an answer"),
        ({"conversation_a": []}, "does not end with an answer"),
    ],
)
def test_what_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        list(arena.rows(battle(**changes)))


@pytest.mark.parametrize("name", SKIPPED)
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(arena, f"arena/{name}") > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(arena)

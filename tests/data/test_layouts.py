"""One literal row of every layout, and the exact record it becomes (file and line apart)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from valence.data.formats.row import LABEL
from valence.data.records import Message, Record

SKY = [{"role": "user", "content": "What color is the sky?"}]
BLUE, GREEN = [{"role": "assistant", "content": "It is blue."}], [{"role": "assistant", "content": "It is green."}]
ASKED = (Message("user", "What color is the sky?"),)
SAID_BLUE, SAID_GREEN = (Message("assistant", "It is blue."),), (Message("assistant", "It is green."),)


def label(sign: float, prompt: Any = "2+2?", completion: Any = "4", **rest: Any) -> Record:
    return Record("label", prompt, (completion,), (sign,), **rest)


def pair(prompt: Any, chosen: Any, rejected: Any, values: tuple[float, ...] = (), **rest: Any) -> Record:
    return Record("pair", prompt, (chosen, rejected), values, scored=bool(values), **rest)


PLAIN = [
    ("label", {"prompt": "2+2?", "completion": "4", "label": True}, label(1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "accept": 0}, label(-1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "accept": "up"}, label(1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "label": "Thumbs-Down"}, label(-1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "label": "thumbs_up"}, label(1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "label": "rejected"}, label(-1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "label": -1}, label(-1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "label": 1.0}, label(1.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "label": None}, label(0.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "sign": 0}, label(0.0)),
    ("label", {"prompt": "2+2?", "completion": "4", "sign": -1}, label(-1.0)),
    ("label", {"prompt": "2+2?", "completion": "4"}, label(0.0)),
    ("label", {"completion": "4", "label": 1}, label(1.0, "")),
    ("label", {"prompt": "2+2?", "completion": "4", "label": 1, "rating": 3}, label(1.0, columns={"rating": 3})),
    ("score", {"prompt": "a", "completion": "b", "reward": -2}, Record("score", "a", ("b",), (-2.0,), scored=True)),
    ("score", {"prompt": "a", "completion": "b", "score": 0.5}, Record("score", "a", ("b",), (0.5,), scored=True)),
    ("score", {"prompt": "a", "completion": "b", "rating": "7"}, Record("score", "a", ("b",), (7.0,), scored=True)),
    ("pair", {"prompt": "a", "chosen": "b", "rejected": "c"}, pair("a", "b", "c")),
    ("pair", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}, pair("a", "b", "c", margin=2.0)),
    (
        "pair",
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 5, "score_rejected": 5, "margin": 0},
        pair("a", "b", "c", (5.0, 5.0), columns={"margin": 0}),
    ),
    (
        "pair",
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_rating": 5, "rejected_rating": 4},
        pair("a", "b", "c", (5.0, 4.0)),
    ),
    (
        "ranking",
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": [1, 3, 2]},
        Record("ranking", "a", ("b", "c", "d"), (1.0, 3.0, 2.0), scored=True),
    ),
    (
        "ranking",
        {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1]},
        Record("ranking", "a", ("b", "c"), (-2.0, -1.0)),
    ),
    (
        "ranking",
        {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1], "scores": [0.1, 0.9]},
        Record("ranking", "a", ("b", "c"), (0.1, 0.9), scored=True),
    ),
    ("prompt", {"prompt": "a", "answer": "4"}, Record("prompt", "a", columns={"answer": "4"})),
    ("prompt", {"prompt": "a", "split": "test"}, Record("prompt", "a", split="test")),
]

TRL = [
    ("label", {"text": "The sky is blue."}, label(0.0, "", "The sky is blue.")),
    ("conversation label", {"messages": SKY + BLUE}, label(0.0, ASKED, SAID_BLUE)),
    ("prompt", {"prompt": "The sky is"}, Record("prompt", "The sky is")),
    ("prompt", {"prompt": SKY}, Record("prompt", ASKED)),
    ("label", {"prompt": "The sky is", "completion": " blue."}, label(0.0, "The sky is", " blue.")),
    ("label", {"prompt": SKY, "completion": BLUE}, label(0.0, ASKED, SAID_BLUE)),
    (
        "pair",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        pair("The sky is", " blue.", " green."),
    ),
    ("pair", {"prompt": SKY, "chosen": BLUE, "rejected": GREEN}, pair(ASKED, SAID_BLUE, SAID_GREEN)),
    (
        "implicit-prompt pair",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        pair("The sky is", " blue.", " green."),
    ),
    ("implicit-prompt pair", {"chosen": SKY + BLUE, "rejected": SKY + GREEN}, pair(ASKED, SAID_BLUE, SAID_GREEN)),
    ("label", {"prompt": "The sky is", "completion": " blue.", "label": True}, label(1.0, "The sky is", " blue.")),
    ("label", {"prompt": SKY, "completion": GREEN, "label": False}, label(-1.0, ASKED, SAID_GREEN)),
]

OTHERS = [
    (
        "HALOs label",
        {"type": "binary_feedback", "prompt_id": 7, "prompt": SKY, "output": BLUE, "label": 1, "reward": 0.3},
        label(1.0, ASKED, SAID_BLUE, columns={"prompt_id": 7, "reward": 0.3}),
    ),
    (
        "HALOs pair",
        {
            "type": "pairwise_feedback",
            "prompt": SKY,
            "output_A": GREEN,
            "output_B": BLUE,
            "label": 0,
            "reward_A": 1,
            "reward_B": 4,
            "reward_difference": 3,
        },
        pair(ASKED, SAID_BLUE, SAID_GREEN, (4.0, 1.0), columns={"reward_difference": 3}),
    ),
    (
        "HALOs score",
        {"type": "scalar_feedback", "prompt": SKY, "output": BLUE, "reward": 0.25},
        Record("score", ASKED, (SAID_BLUE,), (0.25,), scored=True),
    ),
    (
        "LLaMA-Factory alpaca label",
        {"instruction": "Add.", "input": "2+2", "output": "4", "kto_tag": False},
        label(-1.0, "Add.\n2+2", "4"),
    ),
    (
        "LLaMA-Factory alpaca pair",
        {"instruction": "Add 2 and 2.", "input": "", "chosen": "4", "rejected": "5"},
        pair("Add 2 and 2.", "4", "5"),
    ),
    (
        "LLaMA-Factory alpaca label",
        {"instruction": "And 3+3?", "output": "6", "system": "Be brief.", "history": [["2+2?", "4"]], "kto_tag": True},
        label(
            1.0,
            (
                Message("system", "Be brief."),
                Message("user", "2+2?"),
                Message("assistant", "4"),
                Message("user", "And 3+3?"),
            ),
            (Message("assistant", "6"),),
        ),
    ),
    (
        "conversation label",
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "kto_tag": True},
        label(1.0, (Message("user", "2+2?"),), (Message("assistant", "4"),)),
    ),
    (
        "conversation label",  # as a table has it whose other rows write role and content
        {
            "conversations": [
                {"from": "human", "value": "2+2?", "role": None, "content": None},
                {"from": "gpt", "value": "5", "role": None, "content": None},
            ],
            "kto_tag": False,
            "system": "Add.",
        },
        label(-1.0, (Message("system", "Add."), Message("user", "2+2?")), (Message("assistant", "5"),)),
    ),
    (
        "conversation pair",
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        pair((Message("user", "2+2?"),), (Message("assistant", "4"),), (Message("assistant", "5"),)),
    ),
    (
        "conversation pair",
        {"messages": SKY, "chosen": BLUE[0], "rejected": GREEN[0], "system": ""},
        pair(ASKED, SAID_BLUE, SAID_GREEN),
    ),
    (
        "torchtune pair",
        {"chosen_conversations": SKY + BLUE, "rejected_conversations": SKY + GREEN},
        pair(ASKED, SAID_BLUE, SAID_GREEN),
    ),
    (
        "pair",  # OpenRLHF
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5},
        pair("a", "b", "c", margin=0.5),
    ),
    ("label", {"input": "2+2?", "output": "4", "label": True}, label(1.0)),  # OpenRLHF
    (
        "score",  # OpenRLHF, unpaired
        {"instruction": "a", "response": "b", "score": 2},
        Record("score", "a", ("b",), (2.0,), scored=True),
    ),
    ("prompt", {"prompt": "2+2?", "label": "four"}, Record("prompt", "2+2?", columns={"label": "four"})),  # OpenRLHF
    (
        "pair",  # a system prompt beside the prompt
        {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"},
        pair(
            (Message("system", "Be brief."), Message("user", "2+2?")),
            (Message("assistant", "4"),),
            (Message("assistant", "5"),),
        ),
    ),
    (
        "UltraFeedback ranking",  # Nectar
        {"prompt": "a", "answers": [{"answer": "b", "model": "m", "rank": 2.0}, {"answer": "c", "rank": 1.0}]},
        Record("ranking", "a", ("b", "c"), (-2.0, -1.0)),
    ),
    ("prompt", {"prompt": "a", "answers": ["b", "c"]}, Record("prompt", "a", columns={"answers": ["b", "c"]})),
    (
        "prompt",  # verl
        {"data_source": "gsm8k", "prompt": SKY, "reward_model": {"style": "rule", "ground_truth": "blue"}},
        Record(
            "prompt", ASKED, columns={"data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "blue"}}
        ),
    ),
    (
        "ranking",  # verl's generations
        {"prompt": SKY, "responses": ["blue", "green"], "rewards": [1.0, 0.0]},
        Record(
            "ranking",
            ASKED,
            ((Message("assistant", "blue"),), (Message("assistant", "green"),)),
            (1.0, 0.0),
            scored=True,
        ),
    ),
    (
        "REBEL ranking",
        {
            "prompt": "a",
            "prompt_id": "x",
            **{f"response_{i}": f"r{i}" for i in range(5)},
            **{f"response_{i}_reward": i / 10 for i in range(5)},
            "chosen": "r4",
            "reject": "r0",
        },
        Record(
            "ranking",
            "a",
            ("r0", "r1", "r2", "r3", "r4"),
            (0.0, 0.1, 0.2, 0.3, 0.4),
            scored=True,
            columns={"prompt_id": "x", "chosen": "r4", "reject": "r0"},
        ),
    ),
    (
        "UltraFeedback ranking",
        {
            "source": "sharegpt",
            "instruction": "a",
            "models": ["m", "n"],
            "completions": [
                {"model": "m", "response": "b", "overall_score": 7.5, "annotations": {}},
                {"model": "n", "response": "c", "overall_score": 3.0, "annotations": {}},
            ],
        },
        Record(
            "ranking", "a", ("b", "c"), (7.5, 3.0), scored=True, columns={"source": "sharegpt", "models": ["m", "n"]}
        ),
    ),
    (
        "hosted service pair",
        {
            "input": {"messages": SKY, "tools": [], "parallel_tool_calls": True},
            "preferred_output": BLUE,
            "non_preferred_output": GREEN,
        },
        pair(ASKED, SAID_BLUE, SAID_GREEN),
    ),
    (
        "hosted service pair",
        {
            "input": {"messages": SKY, "tools": ["t"]},
            "preferred_output": [
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "blue."}],
                }
            ],
            "non_preferred_output": GREEN,
        },
        pair(ASKED, SAID_BLUE, SAID_GREEN, columns={"tools": ["t"]}),
    ),
    (
        "pair",  # ultrafeedback_binarized: the prompt again inside both conversations, and one of them repeated
        {
            "prompt": "What color is the sky?",
            "chosen": SKY + BLUE,
            "rejected": SKY + GREEN,
            "messages": SKY + BLUE,
            "score_chosen": 8.0,
            "score_rejected": 7.0,
        },
        pair(ASKED, SAID_BLUE, SAID_GREEN, (8.0, 7.0), columns={"messages": SKY + BLUE}),
    ),
    (
        "implicit-prompt pair",  # Anthropic HH transcripts
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello there", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello you"},
        pair("\n\nHuman: Hi\n\nAssistant:", " Hello there", " Hello you"),
    ),
]


THANKS = [{"role": "user", "content": "Sure?"}]
WRONG = [{"role": "assistant", "content": "No."}]
CALL, RESULT = {"role": "assistant", "content": "look()"}, {"role": "tool", "content": "blue"}
TALK = (*ASKED, *SAID_BLUE, Message("user", "Sure?"))
SAID_NO = (Message("assistant", "No."),)

TURNS = [
    # All turns that both share are the prompt, wherever the prompt's own column ends.
    (
        "implicit-prompt pair",
        {"chosen": SKY + BLUE + THANKS + BLUE, "rejected": SKY + BLUE + THANKS + WRONG},
        pair(TALK, SAID_BLUE, SAID_NO),
    ),
    (
        "pair",
        {"prompt": SKY, "chosen": BLUE + THANKS + BLUE, "rejected": BLUE + THANKS + WRONG},
        pair(TALK, SAID_BLUE, SAID_NO),
    ),
    (
        "pair",
        {"prompt": SKY[0]["content"], "chosen": BLUE + THANKS + BLUE, "rejected": BLUE + THANKS + WRONG},
        pair(TALK, SAID_BLUE, SAID_NO),
    ),
    (
        "torchtune pair",
        {
            "chosen_conversations": SKY + BLUE + THANKS + BLUE,
            "rejected_conversations": SKY + BLUE + THANKS + WRONG,
        },
        pair(TALK, SAID_BLUE, SAID_NO),
    ),
    (
        "HALOs pair",
        {
            "type": "pairwise_feedback",
            "prompt": SKY,
            "output_A": BLUE + THANKS + BLUE,
            "output_B": BLUE + THANKS + WRONG,
            "label": 1,
        },
        pair(TALK, SAID_BLUE, SAID_NO),
    ),
    (
        "HALOs label",
        {"type": "binary_feedback", "prompt": SKY, "output": BLUE + THANKS + WRONG, "label": 0},
        label(-1.0, TALK, SAID_NO),
    ),
    (
        "hosted service pair",
        {
            "input": {"messages": SKY},
            "preferred_output": BLUE + THANKS + BLUE,
            "non_preferred_output": BLUE + THANKS + WRONG,
        },
        pair(TALK, SAID_BLUE, SAID_NO),
    ),
    (
        "ranking",
        {"prompt": SKY, "completions": [BLUE + THANKS + BLUE, BLUE + THANKS + WRONG], "scores": [1, 0]},
        Record("ranking", TALK, (SAID_BLUE, SAID_NO), (1.0, 0.0), scored=True),
    ),
    (
        "conversation label",  # one conversation: its last turn is what the thumb is about
        {"messages": [*SKY, CALL, RESULT, *BLUE], "label": 1},
        label(1.0, (*ASKED, Message("assistant", "look()"), Message("tool", "blue")), SAID_BLUE),
    ),
    (
        "implicit-prompt pair",  # what differs stays: the encoder tells of it
        {"chosen": SKY + BLUE + THANKS + BLUE, "rejected": SKY + GREEN + THANKS + BLUE},
        pair(
            ASKED,
            (*SAID_BLUE, Message("user", "Sure?"), *SAID_BLUE),
            (*SAID_GREEN, Message("user", "Sure?"), *SAID_BLUE),
        ),
    ),
]

PROMPTS = [
    ("label", {"context": "2+2?", "completion": "4", "label": 1}, label(1.0)),
    ("label", {"user_prompt": "2+2?", "response": "4", "label": 1}, label(1.0)),
    ("label", {"context": "2+2?", "text": "4", "label": 1}, label(1.0)),
    ("pair", {"context": "2+2?", "chosen": "4", "rejected": "5"}, pair("2+2?", "4", "5")),
    ("prompt", {"context_messages": SKY}, Record("prompt", ASKED)),
    (
        "pair",  # OpenRLHF's prompt collection: its templated text beside the messages
        {"context": "User: What?", "context_messages": SKY, "chosen": BLUE, "rejected": GREEN},
        pair(ASKED, SAID_BLUE, SAID_GREEN, columns={"context": "User: What?"}),
    ),
    (
        "label",  # a question about a text: no prompt is made up of the two
        {"question": "2+2?", "context": "Sums.", "completion": "4", "label": 1},
        label(1.0, columns={"context": "Sums."}),
    ),
]


@pytest.mark.parametrize(("layout", "row", "record"), PLAIN + TRL + OTHERS + TURNS + PROMPTS)
def test_each_layout_becomes_its_record(load_rows: Any, layout: str, row: dict[str, Any], record: Record) -> None:
    loaded = load_rows(row)
    found = loaded.records[0]
    assert replace(found, file="", line=0) == record
    assert found.file.endswith("rows.jsonl") and found.line == 1
    assert loaded.layouts == {layout: 1} and loaded.problems == [] and loaded.rows == 1


def test_mixed_layouts_in_one_file_keep_their_order_lines_and_counts(load_rows: Any) -> None:
    # One spelling of labels: a column of several is refused as a whole.
    chosen = [
        (row, record) for _, row, record in PLAIN + TRL + OTHERS
        if all(row.get(name) in (None, "") or isinstance(row[name], bool) for name in LABEL)
    ]  # fmt: skip
    rows = [row for row, _ in chosen]
    loaded = load_rows(*rows)
    assert len(rows) > 20 and [record.line for record in loaded.records] == list(range(1, len(rows) + 1))
    assert [replace(record, file="", line=0) for record in loaded.records] == [record for _, record in chosen]
    assert sum(loaded.layouts.values()) == loaded.rows == len(rows)


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("He is good", "He is great", ("He is", " good", " great")),  # no word is torn: not "He is g"
        ("good", "bad", ("", "good", "bad")),
        ("yes", "yes indeed", ("", "yes", "yes indeed")),  # neither completion may end up empty
        ("so yes", "so yes indeed", ("so", " yes", " yes indeed")),
    ],
)
def test_the_shared_beginning_of_two_texts_is_the_prompt(
    load_rows: Any, chosen: str, rejected: str, parts: tuple[str, str, str]
) -> None:
    found = load_rows({"chosen": chosen, "rejected": rejected}).records[0]
    assert (found.prompt, *found.completions) == parts


def test_exact_duplicates_and_conflicting_annotators_are_kept(load_rows: Any) -> None:
    row = {"prompt": "a", "completion": "b", "label": 1}
    loaded = load_rows(row, row, {**row, "label": 0})
    assert [record.values for record in loaded.records] == [(1.0,), (1.0,), (-1.0,)]


class TestColumns:
    def test_other_names(self, load_rows: Any) -> None:
        names = {"prompt": "question", "completion": "answer", "accept": "ok"}
        loaded = load_rows({"question": "2+2?", "answer": "4", "ok": "yes", "id": 3}, columns=names)
        assert replace(loaded.records[0], file="", line=0) == label(1.0, columns={"id": 3})

    def test_a_displaced_column_is_kept_beside_the_record(self, load_rows: Any) -> None:
        loaded = load_rows({"prompt": "old", "question": "new", "completion": "c"}, columns={"prompt": "question"})
        assert loaded.records[0].prompt == "new" and loaded.records[0].columns == {"prompt": "old"}

    def test_a_named_score_wins_over_a_label(self, load_rows: Any) -> None:
        row = {"prompt": "a", "completion": "b", "label": "train", "overall": 70}
        loaded = load_rows(row, columns={"score": "overall"})
        found = Record("score", "a", ("b",), (70.0,), scored=True, columns={"label": "train"})
        assert replace(loaded.records[0], file="", line=0) == found

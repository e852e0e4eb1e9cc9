"""Rows on disk: equal to those that were put there, and nothing that is made of them differs from that of lists."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from valence.data.formats.layouts import LAYOUTS, detect
from valence.data.formats.row import Refused, Row
from valence.data.formats.verdicts import Verdicts
from valence.data.groups import groups_for, split_groups
from valence.data.groups.group import Takes
from valence.data.products import PRODUCTS, Products
from valence.data.records import Message, Record
from valence.data.stored import Spool, Stored, blocks, digest, picked
from valence.errors import UserError

ODD = Record(
    "ranking", (Message("user", "ü\ud800"),), ("", "b"), (float("inf"), -0.0), margin=0.1, split="test", file="f",
    line=3, columns={"n": [1, None, {"a": (2,)}]},
)  # fmt: skip


class TestSpool:
    def test_pieces_come_back_while_others_are_added(self) -> None:
        spool = Spool()
        pieces = [bytes([n]) * n for n in range(50)]
        for place, piece in enumerate(pieces):
            spool.append(piece)
            assert spool[place // 2] == pieces[place // 2]
        assert len(spool) == 50 and [spool[place] for place in range(50)] == pieces

    def test_it_leaves_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        spool = Spool()
        spool.append(b"x")
        assert spool[0] == b"x" and not list(tmp_path.iterdir())

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
    def test_a_full_disk_is_told_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with open("/dev/full", "r+b", buffering=0) as full:
            monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
            spool = Spool()
            with pytest.raises(UserError, match=r"^/.* cannot hold the rows \(No space left on device\): set TMPDIR"):
                spool.append(b"x")


class TestStored:
    def test_items_are_equal_to_those_put_in(self) -> None:
        items = [Record("prompt", "p"), ODD, Record("label", "", ("c",), (1.0,))]
        stored = Stored(Record.restored, items)
        assert stored == items and list(stored) == items and stored[-2] == ODD and stored[1:] == items[1:]
        assert repr(stored) == repr(items)
        assert stored != items[:2] and stored != "text"
        with pytest.raises(IndexError, match="3 of 3 items"):
            stored[3]

    def test_an_item_that_json_would_change_stays_in_memory(self) -> None:
        kept = Record("prompt", "p", columns={"f": lambda: 1})
        stored = Stored(Record.restored, [ODD, kept, ODD])
        assert stored[1] is kept and stored[2] == ODD
        tuples = Record("prompt", "p", columns={"a": (1,), "b": {2: 3}})
        assert Stored(Record.restored, [tuples])[0] == tuples

    def test_parts_and_blocks(self) -> None:
        items = [Record("prompt", str(n)) for n in range(5)]
        part = picked(Stored(Record.restored, items), [3, 0])
        assert part == [items[3], items[0]] and picked(part, [1])[0] == items[0]
        assert [len(block) for block in blocks(part, 1)] == [1, 1] and list(blocks([])) == []

    def test_digests_differ_as_texts_do(self) -> None:
        texts: list[Any] = ["", "a", "'a'", (), (Message("a", "b"),), (Message("ab", ""),), "\ud800", ("a", None)]
        assert len({digest(text) for text in texts}) == len(texts)
        assert digest((Message("a", "b"), "c")) == digest((Message("a", "b"), "c"))


def record(draw: random.Random, shape: Any) -> Record:
    prompt = draw.choice(["", f"p{draw.randrange(40)}", (Message("user", f"p{draw.randrange(5)}"),)])
    split = draw.choice([None, None, "train"])

    def made(count: int, values: tuple[float, ...], **options: Any) -> Record:
        texts = tuple(f"c{draw.randrange(60)}" for _ in range(count))
        return Record(shape, prompt, texts, values, file="f", line=draw.randrange(99), split=split, **options)

    match shape:
        case "label":
            return made(1, (float(draw.choice([1, -1, 0])),))
        case "score":
            return made(1, (draw.choice([draw.random(), 1.0]),), scored=True)
        case "pair":
            return made(2, (), margin=draw.choice([None, 0.5]), rate=draw.choice([1.0, 0.75]))
        case "ranking":
            count = draw.randrange(2, 6)
            return made(count, tuple(float(draw.randrange(3)) for _ in range(count)), scored=draw.random() < 0.5)
    return Record("prompt", "p")


@pytest.mark.parametrize("takes", ["labels", "rewards", "preferences"])
@pytest.mark.parametrize(
    "shapes", [["label"], ["score"], ["pair"], ["ranking"], ["label", "score", "pair", "ranking", "prompt"]]
)
def test_contexts_notes_and_held_out_rows_are_those_of_lists_of_any_block(
    takes: Takes, shapes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    records = [record(draw, draw.choice(shapes)) for _ in range(300)]
    expected, notes = groups_for(records, takes)
    monkeypatch.setattr("valence.data.stored.blocks.__defaults__", (7,))
    groups, others = groups_for(Stored(Record.restored, records), takes)
    assert groups == expected and others == notes
    assert split_groups(groups, fraction=0.2, seed=1) == split_groups(list(expected), fraction=0.2, seed=1)


NAMES = (
    "prompt", "instruction", "input", "completion", "output", "text", "label", "score", "chosen", "rejected", "type",
    "completions", "scores", "messages", "system", "winner", "a", "b", "labels", "response_0", "response_0_reward",
)  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "label": [True, False, None], "score": [1, "2", None], "completions": [["x", "y"], ["x"], "x"],
    "winner": ["a", "b"], "scores": [[1, 2], [1, 1]], "type": ["binary_feedback", "x"],
    "labels": [[True], True], "response_0_reward": [1],
    "messages": [[{"role": "user", "content": "u"}], [{"role": "assistant", "content": "v"}], "t"],
}  # fmt: skip


def test_layouts_that_names_rule_out_change_no_row() -> None:
    draw, known, verdicts, shortened = random.Random(1), {}, Verdicts(), 0
    shapes = [draw.sample(NAMES, draw.randrange(1, 6)) for _ in range(150)]
    for _ in range(3000):
        fields = {name: draw.choice(VALUES.get(name, ["t", "u", "", 5])) for name in draw.choice(shapes)}
        results = []
        for layouts in (known, {}):
            row = Row(fields, {}, verdicts)
            try:
                results.append((*detect(row, layouts), row.used))
            except Refused as reason:
                results.append(str(reason))
        assert results[0] == results[1]
        shortened += len(known.get(tuple(row.fields), LAYOUTS)) < len(LAYOUTS)
    assert shortened > 500


def test_a_product_is_found_behind_rows_of_the_same_names() -> None:
    other, own = {"answer": "42", "_task_hash": 1}, {"answer": "accept", "_task_hash": 1}
    products = Products()
    assert products.of(other) is None and products.of({"prompt": "p"}) is None
    found = products.of(own)
    assert found is not None and found.name == "Prodigy" and found in PRODUCTS


def test_progress_and_records_that_are_not_kept(load_rows: Any) -> None:
    told: list[int] = []
    rows = [{"prompt": "p", "completion": str(n), "label": True} for n in range(5)]
    loaded = load_rows(*rows, keep=False, progress=told.append)
    assert told == [1, 2, 3, 4, 5] and loaded.rows == len(rows) and len(loaded.records) == 0
    assert loaded.tally.signs[1] == len(rows) and loaded.tally.prompts == 1

"""Where figures go, and that a resumed run leaves no line of the future behind."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from valence.errors import UserError
from valence.training.tracking import JsonLines, open_trackers, read_metrics


def write(path: Path, steps: list[int]) -> None:
    tracker = JsonLines(path)
    for step in steps:
        tracker.log(step, {"loss": step / 10})
    tracker.close()


def test_lines_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker.log(1, {"loss": 0.5})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5}, "a killed run loses no line"
    tracker.log(1, {"eval/quality": 2.0})
    tracker.close()
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 1, "eval/quality": 2.0}]


def test_a_resumed_run_drops_later_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [0, 1, 2, 3, 3, 4, 5])
    tracker = JsonLines(path, keep_until=3)
    tracker.log(4, {"loss": 9.0})
    tracker.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [
        (0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (3, 0.3), (4, 9.0)
    ]  # fmt: skip


def test_a_new_run_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    JsonLines(path).close()
    assert read_metrics(path) == []


@pytest.mark.parametrize("left", [1, 5, -1])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, left: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:left])
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    tracker = JsonLines(path, keep_until=2)
    tracker.log(3, {"loss": 0.0})
    tracker.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_a_figure_that_is_no_number_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker.log(1, {"loss": float("nan")})
    tracker.close()
    assert read_metrics(path)[0]["loss"] != read_metrics(path)[0]["loss"]


def test_none_writes_lines_only(tmp_path: Path) -> None:
    trackers = open_trackers("none", tmp_path, {})
    for tracker in trackers:
        tracker.log(1, {"loss": 1.0})
        tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_the_figures_and_drops_those_of_the_future(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def steps() -> list[tuple[int, float]]:
        events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        return [(event.step, round(event.value, 3)) for event in events.Scalars("loss")]

    for keep_until, figures in ((0, {1: 0.5, 2: 0.25, 3: 0.125}), (2, {3: 0.75})):
        trackers = open_trackers("tensorboard", tmp_path, {}, keep_until=keep_until)
        for step, value in figures.items():
            for tracker in trackers:
                tracker.log(step, {"loss": value})
        for tracker in trackers:
            tracker.close()
    assert steps() == [(1, 0.5), (2, 0.25), (3, 0.75)]
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.5, 0.25, 0.75]


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'comet'.*tensorboard"):
        open_trackers("comet", tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=f"pip install {kind}"):
        open_trackers(kind, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_hosted_tracker_gets_name_config_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(("init", options))  # pyright: ignore[reportAttributeAccessIssue]
    fake.log = lambda values, step: calls.append(("log", (step, values)))  # pyright: ignore[reportAttributeAccessIssue]
    fake.finish = lambda: calls.append(("finish", None))  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trackers = open_trackers("wandb", tmp_path / ".", {"lr": 0.1})
    for tracker in trackers:
        tracker.log(3, {"loss": 1.5})
        tracker.close()
    assert calls == [
        ("init", {"project": "valence", "name": tmp_path.name, "config": {"lr": 0.1}}),
        ("log", (3, {"loss": 1.5})),
        ("finish", None),
    ]

"""Ctrl-C and SIGTERM: what was learned is saved, the line says how to go on, and going on gives the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from valence.cli.main import main
from valence.errors import UserError
from valence.training.interrupt import NOTHING_SAVED, Interrupted, Signals

SLOW = """
import time
def slow(x):
    time.sleep(0.02)
    return float((x ** 2).sum())
def stuck(x):
    time.sleep(600)
"""


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"p{n}", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words_of(out: Path, feedback: Path, model: Path) -> list[str]:
    return [
        "align", str(feedback), "--model", str(model), "--out", str(out), "--max-steps", "60", "--batch-size", "4",
        "--eval-every", "0", "--eval-samples", "2", "--max-new-tokens", "4", "--save-every", "50", "--threads", "1",
        "--tracker", "none", "--lr", "1e-3",
    ]  # fmt: skip


def broken_off(words: list[str], number: int, ready: Callable[[], bool], folder: Path) -> tuple[int, str]:
    """(exit status, last line on standard error) of a process that gets a signal when it is ready for it."""
    command, environment = [sys.executable, "-m", "valence", *words], os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.002)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said
    return process.returncode, said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_broken_off_is_saved_and_goes_on_to_the_same_bits(
    number: signal.Signals, tiny_llama: Path, feedback: Path, tmp_path: Path
) -> None:
    """Long before the first checkpoint that the schedule asks for, at step 50."""
    out = tmp_path / "broken"
    metrics = out / "metrics.jsonl"
    words = words_of(out, feedback, tiny_llama)
    status, line = broken_off(
        words, number, lambda: metrics.is_file() and '"step": 5,' in metrics.read_text(), tmp_path
    )
    assert status == 128 + number
    (saved,) = (out / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert 5 <= step < 50
    assert line == f"valence: interrupted; step {step} is saved in {saved}: go on with --resume"
    main([*words, "--resume"])
    main(words_of(tmp_path / "whole", feedback, tiny_llama))
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_before_the_first_step_there_is_nothing_to_save(
    tiny_llama: Path,
    feedback: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("valence.evaluation.samples.Evaluation.__call__", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(words_of(tmp_path / "o", feedback, tiny_llama))
    assert stop.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "valence: interrupted; before the first step: there is nothing to save\n"
    assert not (tmp_path / "o" / "checkpoints").exists()
    monkeypatch.undo()
    # The folder is free.
    main([*words_of(tmp_path / "o", feedback, tiny_llama), "--max-steps", "1"])


def test_a_search_is_saved_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW)
    words = ["search", "own.py:slow", "--dim", "2", "--budget", "100000", "--out", "o", "--quiet"]
    state = tmp_path / "o" / "search.json"
    status, line = broken_off(words, signal.SIGTERM, state.is_file, tmp_path)
    judged = json.loads(state.read_text())["state"]["num_judged"]
    assert status == 128 + signal.SIGTERM and judged > 0
    assert line == f"valence: interrupted; {judged} evaluations are saved in o/search.json: go on with --resume"


@pytest.fixture
def soon() -> Iterator[None]:
    """A SIGINT half a second from now, in this process."""
    timer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -INT {os.getpid()}"])
    yield
    timer.wait()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ([], "nothing is saved: give --out to go on later with --resume"),
        (["--out", "o"], "within the first step: there is nothing to save"),
    ],
)
def test_a_search_without_anything_to_save_says_so(
    out: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(SLOW)
    with pytest.raises(SystemExit) as stop:
        main(["search", "own.py:stuck", "--dim", "2", "--quiet", *out])
    assert stop.value.code == 130 and capsys.readouterr().err == f"valence: interrupted; {said}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("valence.runs.offline_control.train_policy", ["offline-control", "pick_place"]),
        ("valence.runs.reward_model.fit", ["reward-model", "labels.jsonl", "--model", "tiny"]),
    ],
)
def test_what_cannot_go_on_says_so(
    place: str, words: list[str], feedback: Path, tiny_llama: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_llama)
    assets = Path(__file__).parents[2] / "src" / "valence" / "assets"
    (tmp_path / "pick_place").symlink_to(assets / "pick_place")
    monkeypatch.setattr("valence.runs.offline_control.VALUE_STEPS", 1)
    monkeypatch.setattr(place, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", "o"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines()[-1] == f"valence: interrupted; {NOTHING_SAVED}"


def test_the_demo_names_the_command_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def align(*_: object, out: Path, **__: object) -> None:
        (out / "checkpoints" / "step-00000003").mkdir(parents=True)
        (out / "checkpoints" / "step-00000003" / "state.json").write_text("{}")
        raise Interrupted(signal.SIGINT, "step 3 is saved in its folder: go on with `resume`")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("valence.runs.demo.align", align)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", "d"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == (
        "valence: interrupted; step 3 is saved in its folder: go on with --resume: "
        "valence align --config d/run/config.yaml --resume\n"
    )


class TestSignals:
    def test_one_breaks_off_at_once_outside_and_after_an_unbroken_part(self, capfd: pytest.CaptureFixture[str]) -> None:
        done: list[str] = []
        with pytest.raises(Interrupted) as stop, Signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("never")
        assert stop.value.number == signal.SIGTERM and not done and not capfd.readouterr().err
        with pytest.raises(Interrupted) as stop, Signals() as signals:
            with signals.unbroken():
                signal.raise_signal(signal.SIGINT)
                done.append("the step")
            done.append("never")
        assert stop.value.number == signal.SIGINT and done == ["the step"]
        assert capfd.readouterr().err == "interrupted: this step is finished first; a second signal ends at once\n"

    def test_a_second_one_ends_at_once(self) -> None:
        done: list[str] = []
        # A worker of pytest-xdist ignores it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt) as stop, Signals() as signals, signals.unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append("still within the step")
            signal.raise_signal(signal.SIGINT)
            done.append("never")
        signal.signal(signal.SIGINT, before)
        assert not isinstance(stop.value, Interrupted) and done == ["still within the step"]

    def test_the_handlers_of_before_come_back(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with Signals():
            assert signal.getsignal(signal.SIGTERM) is not before[1]
        with pytest.raises(UserError), Signals() as signals, signals.unbroken():
            raise UserError("another end")
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

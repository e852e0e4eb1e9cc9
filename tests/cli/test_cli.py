"""The command line: exit codes, one clear line, fast start, and a kill in mid-run."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from valence.cli.main import main
from valence.runs.methods import METHODS
from valence.runs.settings import WITH_METHODS

BAD = [
    (["frob"], "there is no command 'frob'"),
    (["inspect"], "no file given"),
    (["inspect", "nope.jsonl"], "no such file"),
    (["align"], "feedback, model, out missing"),
    (["align", "f", "--model", "m", "--out", "o", "--bogus"], "--bogus"),
    (["align", "f", "--model", "m", "--out", "o", "--method", "foo"], "must be one of auto, pmpo"),
    (["align", "f", "--model", "m", "--out", "o", "--lr", "x"], "--lr"),
    (["align", "f", "--model", "m", "--out", "o", "--tau=2", "--method=kto"], "(--tau belongs to the method dro)"),
    (["align", "f", "--model", "m", "--out", "o", "--method"], "--method needs a value"),
    (["align", "--config", "nope.yaml"], "nope.yaml"),
    (["align", "--config"], "--config needs a value"),
    (["reproduce", "thumbs"], "there is no command 'reproduce'"),
]


@pytest.mark.parametrize("words, said", BAD)
def test_bad_input_exits_2_with_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_of_the_parser_are_read_in_any_encoding(
    encoding: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its box is drawn with other characters where the output is not UTF-8."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    for words, expected in (
        (["--bogus"], "Unrecognized options: --bogus"),
        (["--lr=x"], "--lr: no type matching {None}|FLOAT could be instantiated from ['x']."),
        (["--dtype=float8"], "invalid choice 'float8' for argument --dtype. Expected one of ('float32', 'bfloat16')."),
        (["--lr", "-1"], "--lr is -1.0, and must be above 0"),
    ):
        with pytest.raises(SystemExit):
            main(["align", "f", "--model", "m", "--out", "o", *words])
        assert capsys.readouterr().err == f"valence: {expected}; see valence align --help\n"


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe\x01binary", b"not json\n", b"[1, 2"])
def test_inspect_refuses_what_it_cannot_read(
    content: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "bad.jsonl" in error
    assert error.count("\n") == 1


def test_inspect_json_has_the_promised_fields(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "accept": true}\n{"prompt": "a", "completion": ""}\n')
    main(["inspect", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found)[:8] == ["shape", "rows", "prompts", "accepted", "rejected", "problems", "method", "why"]
    assert (found["shape"], found["rows"], found["accepted"], found["method"]) == ("labels", 2, 1, "pmpo")
    assert found["problems"][0]["line"] == 2
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(path), "--strict"])
    assert stop.value.code == 2


@pytest.mark.parametrize("code", ["import valence", "from valence.cli.main import main; main(['--version'])"])
def test_starting_imports_nothing_heavy(code: str) -> None:
    heavy = ("torch", "transformers", "diffusers", "mujoco", "gradio", "sklearn", "datasets")
    check = f"{code}\nimport sys; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_inspect_needs_no_torch(feedback: Path) -> None:
    test_starting_imports_nothing_heavy(f"from valence.cli.main import main; main(['inspect', {str(feedback)!r}])")


def test_the_commands_with_methods_are_those_of_the_table() -> None:
    assert set(WITH_METHODS) == set(METHODS)


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"p{n}", "completion": f"answer {n}", "accept": n % 2 == 0} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words_of(out: Path, feedback: Path, model: Path) -> list[str]:
    return [
        "align", str(feedback), "--model", str(model), "--out", str(out), "--max-steps", "30", "--batch-size", "4",
        "--eval-every", "0", "--eval-samples", "2", "--max-new-tokens", "4", "--save-every", "3", "--threads", "1",
        "--tracker", "none", "--lr", "1e-3",
    ]  # fmt: skip


def test_a_killed_run_resumes_bit_for_bit(
    tiny_llama: Path, feedback: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "valence", *words_of(tmp_path / "broken", feedback, tiny_llama)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as broken:
        metrics = tmp_path / "broken" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        # Killed at a step that has no checkpoint of its own.
        while not (metrics.is_file() and '"step": 11,' in metrics.read_text()):
            assert broken.poll() is None, broken.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        broken.send_signal(signal.SIGKILL)
    killed_at = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert killed_at < 30
    assert not (tmp_path / "broken" / "model").exists()
    main([*words_of(tmp_path / "broken", feedback, tiny_llama), "--resume"])
    assert "resumed from step-" in capsys.readouterr().out
    main(words_of(tmp_path / "whole", feedback, tiny_llama))
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["align"], "language"), (["demo"], "language"), (["improve-images"], "images"), (["search"], "control")],
)
def test_a_missing_package_names_the_extra_that_has_it(
    words: list[str], extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="somewhere")

    monkeypatch.setattr("valence.cli.main.import_module", missing)
    with pytest.raises(SystemExit):
        main(words)
    assert f"somewhere is not installed: pip install 'valence-learn[{extra}]'" in capsys.readouterr().err

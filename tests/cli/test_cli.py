"""The command line: exit codes, one clear line, fast start, and a kill in mid-run."""

from __future__ import annotations

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

BAD = [
    (["frob"], "there is no command 'frob'"),
    (["inspect"], "no file given"),
    (["inspect", "nope.jsonl"], "no such file"),
    (["align"], "feedback, model, out missing"),
    (["align", "f", "--model", "m", "--out", "o", "--bogus"], "--bogus"),
    (["align", "f", "--model", "m", "--out", "o", "--method", "foo"], "must be one of auto, pmpo"),
    (["align", "f", "--model", "m", "--out", "o", "--lr", "x"], "--lr"),
    (["align", "--config", "nope.yaml"], "nope.yaml"),
    (["align", "--config"], "needs a file"),
    (["reproduce", "nope"], "there is no experiment 'nope'"),
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


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"p{n}", "completion": f"answer {n}", "accept": n % 2 == 0} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(out: Path, feedback: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    words = [
        "align", str(feedback), "--model", str(model), "--out", str(out), "--max-steps", "40", "--batch-size", "4",
        "--eval-every", "0", "--eval-samples", "2", "--max-new-tokens", "4", "--save-every", "3", "--threads", "1",
        "--tracker", "none", "--lr", "1e-3", *more,
    ]  # fmt: skip
    command = [sys.executable, "-m", "valence", *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_run_resumes_bit_for_bit(tiny_llama: Path, feedback: Path, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", feedback, tiny_llama)
    broken = start(tmp_path / "broken", feedback, tiny_llama)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    # Killed at a step that has no checkpoint of its own.
    while not (metrics.is_file() and '"step": 11,' in metrics.read_text()):
        assert broken.poll() is None, broken.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    killed_at = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert killed_at < 40
    assert not (tmp_path / "broken" / "model").exists()
    resumed = start(tmp_path / "broken", feedback, tiny_llama, "--resume")
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert "resumed from step-" in said
    said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["reproduce", "thumbs"], "language"), (["reproduce", "bandit"], "control"), (["search"], "control")],
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

"""`--config RUN/config.yaml --out OTHER` reruns a run of every command that writes a config.yaml."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from valence.cli.main import COMMANDS, main

SHORT = "--max-steps 1 --batch-size 4 --eval-samples 2 --max-new-tokens 4 --tracker none --eval-every 0"
ACTING = "--steps 60 --warmup-steps 20 --hidden 8 --batch-size 8 --tracker none --eval-episodes 1"
RUNS = {
    "align": (f"align labels.jsonl more.jsonl --model tiny {SHORT} --method kto --eval-feedback more.jsonl", "model"),
    "improve": (f"improve labels.jsonl --model tiny --reward length --num-epochs 1 {SHORT}", "model"),
    "improve-images": (
        "improve-images --pipeline small-digits --max-steps 1 --num-epochs 1 --batch-size 2 --num-samples 2 "
        "--eval-samples 2 --eval-every 0 --tracker none --gold none",
        "model",
    ),
    "reward-model": ("reward-model pairs.jsonl --model tiny --max-steps 2 --kind preference --embedding 4", "."),
    "compare": ("compare tiny tiny --prompts labels.jsonl --judge length --max-new-tokens 4", ""),
    "control": (f"control worlds:Point-v0 {ACTING}", "policy"),
    "offline-control": ("offline-control pick_place --steps 2 --hidden 8 --use accept clone", "policy"),
    "search": ("search sphere --dim 2 --budget 40 --quiet", ""),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("valence.runs.offline_control.VALUE_STEPS", 1)
    for name, start in (("labels.jsonl", 0), ("more.jsonl", 8)):
        rows = [{"prompt": f"p{n}", "completion": f"a {n}", "label": n % 2 == 0} for n in range(start, start + 8)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"p{n}", "chosen": f"aaa{n}", "rejected": f"zzz{n}"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "tiny").symlink_to(tiny_llama)
    (tmp_path / "pick_place").symlink_to(Path(__file__).parents[2] / "src" / "valence" / "assets" / "pick_place")
    return tmp_path


def test_every_command_that_writes_one_is_tried() -> None:
    assert RUNS.keys() == COMMANDS.keys() - {"inspect", "demo"}, "these two write none"


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=() if name in ("align", "search") else pytest.mark.slow) for name in RUNS]
)
def test_the_second_run_is_the_first(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, weights = RUNS[command]
    main([*shlex.split(words), "--out", "first"])
    file = Path("first") / "config.yaml"
    # It says where the first run lies: that is not overwritten.
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", str(file)])
    assert stop.value.code == 2 and "first already holds a run" in capsys.readouterr().err
    main([command, "--config", str(file), "--out", "again"])
    ours, theirs = (yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("first", "again"))
    assert {name for name in ours if ours[name] != theirs[name]} == {"out"}
    if weights:
        (path,) = sorted((folder / "first" / weights).glob("*.safetensors"))
        one, other = load_file(path), load_file(folder / "again" / weights / path.name)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    else:
        name = {"compare": "samples.jsonl", "search": "search.json"}[command]
        assert (folder / "first" / name).read_text() == (folder / "again" / name).read_text()

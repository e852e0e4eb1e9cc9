"""The gsm8k example from its rows to its page, every command of it, at a step each."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBLEMS = ROOT.parent / "shared/data/gsm8k/problems.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"gsm8k's problems are not at {PROBLEMS}")
def test_the_example_runs_to_its_page(tiny_llama: Path, tmp_path: Path) -> None:
    with gzip.open(PROBLEMS, "rt", encoding="utf-8") as lines:
        some = "".join(itertools.islice(lines, 200))
    (tmp_path / "problems.jsonl").write_text(some + '{"prompt": "p", "answer": "1", "split": "heldout"}\n')
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    small = {"PATH": paths, "MODEL": str(tiny_llama), "STEPS": "1", "EVAL_SAMPLES": "4"}
    command = ["sh", str(ROOT / "examples/gsm8k.sh"), str(tmp_path / "problems.jsonl"), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | small, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 200 and sum(row["split"] == "heldout" for row in rows) == 10
    assert all(row["completion"] == f"#### {row['answer']}" for row in rows)
    found = json.loads((tmp_path / "page" / "results.json").read_text())
    assert [row["completions"] for row in found["rows"]] == [32, 32] and [row["steps"] for row in found["rows"]] == [
        1,
        1,
    ]
    assert all(0 <= row[name] <= 100 for row in found["rows"] for name in ("drawn", "before", "after"))
    assert "| as it is | 1 | 32 |" in (tmp_path / "page" / "README.md").read_text()

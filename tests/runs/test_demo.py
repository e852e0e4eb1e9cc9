"""The demo, at two steps: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valence.errors import UserError
from valence.runs.demo import OPTIONS, DemoConfig, demo


def test_demo_shows_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"batch_size": 8, "eval_samples": 4, "eval_rows": 8}.items():
        monkeypatch.setitem(OPTIONS, name, value)
    config = DemoConfig(out=str(tmp_path / "demo"), max_steps=2, samples=8)
    figures = demo(config)
    assert figures["before"]["KL(π‖π_ref), nats"] == 0
    assert figures["after"]["KL(π‖π_ref), nats"] > 0
    printed = capsys.readouterr().out
    assert "4,824 movie-review sentences" in printed and "warning" not in printed
    assert printed.index("before:") < printed.index("after:")
    written = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert written["after"] == figures["after"]
    assert (tmp_path / "demo" / "run" / "report.html").is_file()
    with pytest.raises(UserError, match="already holds a run"):
        demo(config)

"""`compare` from two models to a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from valence.cli.main import main
from valence.errors import UserError
from valence.runs.compare import compare


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p<{n}>", "answer": str(n)}) + "\n" for n in range(12)))
    return str(path)


def run(prompts: str, out: Path, *models: Path, **options: Any) -> Any:
    options = {"judge": "length", "max_new_tokens": 6} | options
    return compare(*models, prompts=prompts, out=out, quiet=True, **options)


def test_a_model_is_even_with_itself(prompts: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The same seed draws the same completions: all are ties."""
    found = run(prompts, tmp_path / "out", tiny_llama, tiny_llama)
    assert (found.rate, found.ties, found.judged) == (0.5, 1.0, 12)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "p&lt;3&gt;" in page and "p<3>" not in page
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["result"]["rate"] == 0.5 and written["config"] == settings
    assert settings["models"] == [str(tiny_llama)] * 2 and settings["max_new_tokens"] == 6
    with pytest.raises(UserError, match="already holds a run: give another `out`"):
        run(prompts, tmp_path / "out", tiny_llama, tiny_llama)


def test_the_higher_reward_wins(prompts: str, tiny_llama: Path, tiny_t5: Path, tmp_path: Path) -> None:
    found = run(prompts, tmp_path / "out", tiny_llama, tiny_t5)
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    sizes = [(len(row["first"].split()), len(row["second"].split())) for row in rows]
    expected = [0.5 + 0.5 * ((one > two) - (one < two)) for one, two in sizes]
    assert [row["verdict"] for row in rows] == expected and found.rate == pytest.approx(sum(expected) / len(rows))


def test_wrong_input_is_one_line(
    prompts: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="1 models given: valence compare MODEL MODEL"):
        run(prompts, tmp_path / "out", tiny_llama)
    with pytest.raises(UserError, match=r"^`judge`: 'nobody' is none of number, exact"):
        run(prompts, tmp_path / "out", tiny_llama, tiny_llama, judge="nobody")
    with pytest.raises(UserError, match=r"^`max_new_tokens=100000` leaves .* no room: it has"):
        run(prompts, tmp_path / "out", tiny_llama, tiny_llama, max_new_tokens=100_000)
    with pytest.raises(UserError, match="none of the 12 prompts"):
        run(prompts, tmp_path / "out", tiny_llama, tiny_llama, max_length=2)
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--prompts", prompts])
    assert "judge, out missing" in capsys.readouterr().err

"""What every reproduction prints and writes: its rows, and the paper's claims beside ours."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Claim:
    """One claim: what the paper says, what we saw, and whether it holds here."""

    claim: str
    paper: str
    ours: str
    holds: bool


def commit() -> str:
    """The commit that made a result, marked where the tree had changes; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Cores, memory, processor and torch, in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores {platform.machine()}, {pages:.0f} GiB, {gpu}, torch {torch.__version__}"


def write_results(
    out: Path, name: str, rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim], seeds: Sequence[int], **more: Any
) -> Path:
    """Write `out/results.json`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "name": name, "rows": list(rows), "claims": [asdict(claim) for claim in claims],
        "command": " ".join(["valence", *sys.argv[1:]]), "commit": commit(), "seeds": list(seeds), "machine": machine(),
    }  # fmt: skip
    path = out / "results.json"
    path.write_text(json.dumps(result | more, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_page(path: Path, title: str, text: str, *pictures: str) -> None:
    """A short page beside a `results.json`, made from it: what was run, its table, and its claims if there are any."""
    result = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
    lines = [f"# {title}", "", text, "", *(f"![{title}]({picture})\n" for picture in pictures)]
    lines += _markdown(result["rows"])
    if result["claims"]:
        lines += ["", "## Claims", ""]
    lines += _markdown([claim | {"holds": "yes" if claim["holds"] else "**no**"} for claim in result["claims"]])
    made = (
        f"Made by `{result['command']}` at commit {result['commit']}, seeds {result['seeds']}, on {result['machine']}."
    )
    if result.get("commits"):
        made += f" Its runs were made at {', '.join(result['commits'])}."
    path.write_text("\n".join([*lines, "", made, ""]), encoding="utf-8")


def _markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *cells]]


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table; floats to two places."""
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if isinstance(rows[0].get(name), str) else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in names))
    _console().print(table)


def _console() -> Any:
    """Wide where no terminal limits it: a log's lines may be long, and a squeezed table cannot be read."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 180)


def print_claims(claims: Sequence[Claim]) -> None:
    """The paper's claims beside ours."""
    from rich.table import Table

    table = Table(title="Claims", title_justify="left")
    for name in ("claim", "paper", "ours", "holds"):
        table.add_column(name)
    for claim in claims:
        table.add_row(claim.claim, claim.paper, claim.ours, "yes" if claim.holds else "NO")
    _console().print(table)

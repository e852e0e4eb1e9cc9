"""What every experiment prints and writes: its table, the paper's claims beside ours, and the page of both."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, the paper's figures, ours, and whether the claim holds here."""

    claim: str
    paper: str
    ours: str
    holds: bool


def by_name(rows: Iterable[R], name: str | Callable[[R], Any] = "name") -> dict[Any, list[R]]:
    """Rows by their name, or by what `name` says, in order of appearance."""
    groups: dict[Any, list[R]] = {}
    for row in rows:
        groups.setdefault(row[name] if isinstance(name, str) else name(row), []).append(row)
    return groups


def mean(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    """The mean of one figure over rows."""
    return statistics.fmean(row[name] for row in rows)


def spread(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    """The standard deviation of one figure over rows; 0 for a single row."""
    values = [row[name] for row in rows]
    return statistics.stdev(values) if len(values) > 1 else 0.0


@cache
def commit() -> str:
    """The commit of the checkout, with "+changes" where files differ from it; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def machine() -> str:
    """Cores, memory, processor and torch, in one line."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores {platform.machine()}, {pages:.0f} GiB, {gpu}, torch {torch.__version__}"


def write_results(
    out: Path, name: str, rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim], seeds: Sequence[int], *,
    command: str, **more: Any,
) -> Path:  # fmt: skip
    """Write `out/results.json`; returns its path.

    Args:
        rows: the lines of the table.
        command: how the results are made again, without any folder of this machine.
        more: further entries of the file.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "name": name, "rows": list(rows), "claims": [asdict(claim) for claim in claims], "command": command,
        "commit": commit(), "seeds": list(seeds), "machine": machine(), **more,
    }  # fmt: skip
    path = out / "results.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_page(path: Path, text: str, *pictures: str) -> None:
    """Write a page with the `results.json` beside it: text, pictures, table, and claims if there are any.

    Args:
        text: the page's text; its first line is the title.
        pictures: files beside the page.
    """
    result = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
    title = text.splitlines()[0].removeprefix("# ")
    lines = [text, "", *(f"![{title}]({picture})\n" for picture in pictures)]
    lines += _markdown(result["rows"])
    if result["claims"]:
        lines += ["", "## Claims", ""]
    lines += _markdown([claim | {"holds": "yes" if claim["holds"] else "**no**"} for claim in result["claims"]])
    made = (
        f"Made by `{result['command']}` at commit {result['commit']}, seeds {result['seeds']}, on {result['machine']}."
    )
    if result.get("commits", [result["commit"]]) not in ([], [result["commit"]]):
        made += f" Its runs were made at {', '.join(result['commits'])}."
    if "mended" in result:
        made += f" {result['mended']}"
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
    """Print rows as a table; floats have two decimals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name, justify="left" if isinstance(rows[0].get(name), str) else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in names))
    # A log has no width; a table squeezed into 80 columns cannot be read.
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def print_claims(claims: Sequence[Claim]) -> None:
    """Print the paper's claims beside ours."""
    print_table("Claims", [asdict(claim) | {"holds": "yes" if claim.holds else "NO"} for claim in claims])

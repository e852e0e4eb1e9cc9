"""How long large files of feedback take, and how much memory: `valence inspect` and the first step of `valence align`.

Each measurement is a process of its own, so this one imports nothing large: the peak of a child counts from that of its
parent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = (  # noqa: SIM905
    "the of and to in is that it was for on are as with they be at one have this from or had by hot but some what "
    "there we can out other were all your when up use word how said an each she which do their time if will way "
    "about many then them would write like so these her long make thing see him two has look more day could go come"
).split()
PROMPT, COMPLETION = 140, 410
"""Characters of a prompt and of a completion, about."""


def write_rows(path: Path, rows: int, *, seed: int = 0) -> None:
    """JSON Lines of prompt, completion and label: always the same bytes, about 613 a row."""
    draw = random.Random(seed)
    text = " ".join(draw.choice(WORDS) for _ in range(400_000))

    def part(size: int) -> str:
        start = text.index(" ", draw.randrange(len(text) - 2 * size)) + 1
        return text[start : start + draw.randrange(size // 2, size + size // 2)].strip()

    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            good = draw.random() < 0.6
            fields = {"prompt": f"{row}. {part(PROMPT)}?", "completion": f"{part(COMPLETION)}.", "label": good}
            file.write(json.dumps(fields) + "\n")


def measure(words: list[str], metrics: Path | None = None) -> dict[str, Any]:
    """Seconds and peak MiB of a command of Valence; with `metrics`, also the seconds until a step is written there."""
    began = time.perf_counter()
    first: float | None = None
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "valence", *words], stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        while True:
            ended, status, usage = os.wait4(running.pid, os.WNOHANG)
            if first is None and metrics is not None and metrics.exists() and metrics.stat().st_size:
                first = time.perf_counter() - began
            if ended:
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        running.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        told = output.read().decode(errors="replace").strip().splitlines()
    if running.returncode:
        sys.exit(f"valence {' '.join(words)} ended with {running.returncode}: {told[-1] if told else 'no output'}")
    kibibytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "MiB": kibibytes / 1024, "first_step": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[30_000, 300_000])
    parser.add_argument("--commands", nargs="+", default=["inspect", "align"], choices=["inspect", "align"])
    parser.add_argument("--write", type=Path, help="only write the file of the last number of rows here")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/results/performance")
    asked = parser.parse_args()
    if asked.write:
        write_rows(asked.write, asked.rows[-1])
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in asked.rows:
            path, out = Path(folder) / f"{rows}.jsonl", Path(folder) / f"run-{rows}"
            write_rows(path, rows)
            words = {
                "inspect": ["inspect", str(path)],
                "align": [
                    *("align", str(path), "--model", "small-lm", "--out", str(out), "--max-steps", "1"),
                    *("--eval-samples", "2", "--eval-rows", "2", "--max-new-tokens", "8", "--tracker", "none"),
                ],
            }
            for name in asked.commands:
                found = measure(words[name], out / "metrics.jsonl" if name == "align" else None)
                runs.append({"command": name, "rows": rows, "MB": path.stat().st_size / 1e6} | found)
                step = f", first step after {found['first_step']:.1f} s" if found["first_step"] else ""
                print(
                    f"{name:8} {rows:8,} rows {runs[-1]['MB']:6.1f} MB {found['seconds']:7.1f} s "
                    f"({found['cpu_seconds']:.1f} s of processor) {found['MiB']:6,.0f} MiB{step}",
                    flush=True,
                )
            path.unlink()
    if asked.keep:
        from common import keep

        keep("intake", {"runs": runs})


if __name__ == "__main__":
    main()

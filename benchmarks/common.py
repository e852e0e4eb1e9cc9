"""What the benchmarks share: the machine, its memory, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "performance"
"""Where figures are kept."""


def memory(device: str, *, reset: bool = False) -> float:
    """MiB: the most since the last reset, or with `reset` what is held now."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def apart(script: str, words: list[Any]) -> Any:
    """What a script's last line says, as JSON, run in a process of its own; a text says why it did not come to that."""
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write figures and the machine they are of."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine()} | figures, indent=1)
    (FOLDER / f"{name}.json").write_text(text + "\n")


def machine() -> dict[str, Any]:
    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not here"

    told = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in told if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=FOLDER.parents[2], check=False
    )
    return {
        "processor": models[0] if models else platform.processor(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "commit": commit.stdout.strip(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    } | {name: of(name) for name in ("torch", "transformers", "trl", "liger-kernel")}  # fmt: skip

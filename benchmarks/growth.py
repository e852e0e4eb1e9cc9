"""How the cost of the head grows: memory with the vocabulary, time with the number of tokens."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import keep
from head import measure

WIDTH, TOKENS, VOCABULARY = 256, 1024, 32_768
"""The sizes that stay fixed while another one grows."""
VOCABULARIES = (8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
COUNTS = (512, 1024, 2048, 4096, 8192)
VARIANTS = ("naive", "ahead", "recompute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/results/performance")
    asked = parser.parse_args()
    runs: list[dict[str, Any]] = []
    sizes = [(TOKENS, WIDTH, size) for size in VOCABULARIES] + [(count, WIDTH, VOCABULARY) for count in COUNTS]
    for size in dict.fromkeys(sizes):
        for name, figures in measure(list(VARIANTS), size, asked.device, asked.repeats).items():
            if isinstance(figures, str):
                print(f"{name} at {size} failed: {figures}")
                continue
            runs.append({"variant": name, "tokens": size[0], "vocabulary": size[2]} | figures)
            row = f"T {size[0]:6,} V {size[2]:8,} {name:10} {figures['MiB']:8,.0f} MiB {figures['seconds']:7.2f} s"
            print(row, flush=True)
    if asked.keep:
        keep("growth", {"width": WIDTH, "tokens": TOKENS, "vocabulary": VOCABULARY, "runs": runs})


if __name__ == "__main__":
    main()

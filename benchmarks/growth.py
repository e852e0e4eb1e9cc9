"""How the fused head's cost grows: memory with V (flat at a fixed tile), time with tokens (linear). Writes a picture.

Peak memory is that beyond inputs and gradients; each point in a process of its own (see head.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

VOCABULARIES = (8_192, 16_384, 32_768, 65_536, 131_072)
TOKENS = (256, 512, 1024, 2048, 4096)
WIDTH = 256
VARIANTS = ("naive", "recompute", "ahead")


def point(variant: str, tokens: int, vocabulary: int) -> dict[str, float]:
    words = ["--one", variant, "--tokens", tokens, "--vocabulary", vocabulary, "--width", WIDTH, "--repeats", 2]
    here = Path(__file__).with_name("head.py")
    done = subprocess.run([sys.executable, str(here), *map(str, words)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/performance-growth.png"))
    out = parser.parse_args().out
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for variant in VARIANTS:
        memory = [point(variant, 512, vocabulary)["MiB"] for vocabulary in VOCABULARIES]
        seconds = [point(variant, tokens, 16_384)["seconds"] for tokens in TOKENS]
        left.plot(VOCABULARIES, memory, marker="o", label=variant)
        right.plot(TOKENS, seconds, marker="o", label=variant)
        for name, places, values in (("MiB", VOCABULARIES, memory), ("seconds", TOKENS, seconds)):
            pairs = ", ".join(f"{place:,}: {value:.3g}" for place, value in zip(places, values, strict=True))
            print(f"{variant:10} {name:8} {pairs}", flush=True)
    left.set_xlabel("vocabulary, at 512 tokens")
    left.set_ylabel("MiB beyond inputs and gradients")
    left.set_yscale("log")
    right.set_xlabel("tokens, at a vocabulary of 16,384")
    right.set_ylabel("seconds, forward and backward")
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()

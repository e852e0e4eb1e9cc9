"""The head alone, forward and backward: peak memory beyond inputs and gradients, and time, ours beside its peers.

Each variant runs in a process of its own, one after the other, on the same numbers: log pi, log pi_ref and
KL(pi_ref || pi) of T tokens, and the gradient of a weighted sum of the first and the last with respect to the hidden
states and the head. On a CPU in float32, on a GPU in bfloat16. Timings are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEEDS = frozenset({"log_prob", "ref_log_prob", "ref_kl"})


class Case:
    """The numbers: `hidden`, `weight` learn; `ref_hidden`, `ref_weight` do not."""

    def __init__(self, tokens: int, width: int, vocabulary: int, device: str) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator(device=device).manual_seed(0)

        def draw(*shape: int, size: float = 1.0) -> Tensor:
            return size * torch.randn(shape, generator=generator, device=device, dtype=dtype)

        self.hidden, self.ref_hidden = draw(tokens, width), draw(tokens, width)
        self.weight, self.ref_weight = (draw(vocabulary, width, size=width**-0.5) for _ in range(2))
        self.targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
        self.on_log_prob, self.on_kl = draw(tokens).float(), draw(tokens).float().abs()
        for part in (self.hidden, self.weight):
            part.requires_grad_()

    def loss(self, log_prob: Tensor, kl: Tensor) -> Tensor:
        return (self.on_log_prob * log_prob).sum() + (self.on_kl * kl).sum()


def naive(case: Case) -> None:
    """Full logits of both, autograd."""
    log_p = (case.hidden @ case.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        log_q = (case.ref_hidden @ case.ref_weight.T).float().log_softmax(-1)
        _ = log_q.gather(1, case.targets[:, None])
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    case.loss(log_p.gather(1, case.targets[:, None])[:, 0], kl).backward()


def _heads(case: Case) -> Any:
    from valence.policies.fused import LinearHead

    return LinearHead(case.weight), LinearHead(case.ref_weight)


def ahead(case: Case) -> None:
    """Ours, coefficients known ahead (PMPO)."""
    from valence.policies.fused import likelihoods_and_gradients

    coefficients = {"log_prob": case.on_log_prob, "ref_kl": case.on_kl}
    _, hidden, weight, _ = likelihoods_and_gradients(
        case.hidden, case.ref_hidden, case.targets, *_heads(case), coefficients, needs=NEEDS
    )
    assert weight is not None
    case.hidden.grad, case.weight.grad = hidden.to(case.hidden.dtype), weight.to(case.weight.dtype)


def recompute(case: Case) -> None:
    """Ours, coefficients known afterwards (DPO, KTO, REBEL, DRO)."""
    from valence.policies.fused import fused_likelihoods

    parts = fused_likelihoods(case.hidden, case.ref_hidden, case.targets, *_heads(case), needs=NEEDS)
    case.loss(parts["log_prob"], parts["ref_kl"]).backward()


def plain(case: Case) -> None:
    """Ours, the plain head: tiles of tokens, logits made again by autograd's checkpoints."""
    from valence.policies.token_head import token_likelihoods

    parts = token_likelihoods(
        case.hidden, case.ref_hidden, case.targets, lambda hidden: (hidden @ case.weight.T).float(),
        lambda hidden: (hidden @ case.ref_weight.T).float(), vocabulary=len(case.weight), needs=NEEDS,
    )  # fmt: skip
    case.loss(parts["log_prob"], parts["ref_kl"]).backward()


def trl(case: Case) -> None:
    """TRL's two chunked functions, for the same outputs; the width of its callers' chunks."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def log_prob(hidden: Tensor, weight: Tensor) -> Tensor:
        return ChunkedLogProbFunction.apply(hidden, weight, None, case.targets, 1.0, TRL_CHUNK, None, 1.0, ())[0]

    with torch.no_grad():
        log_prob(case.ref_hidden, case.ref_weight)
    kl, _ = ChunkedDivergenceFunction.apply(case.hidden, case.weight, None, case.ref_hidden, case.ref_weight, None, 0.0)
    case.loss(log_prob(case.hidden, case.weight), kl).backward()


TRL_CHUNK = 32768
VARIANTS: dict[str, Callable[[Case], None]] = {
    "naive": naive, "trl": trl, "plain": plain, "recompute": recompute, "ahead": ahead,
}  # fmt: skip


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


def one(name: str, tokens: int, width: int, vocabulary: int, device: str, repeats: int) -> dict[str, float]:
    """One variant's figures: MiB beyond inputs and gradients, and the least of some runs' seconds."""
    # What is imported and set up by a first call does not count.
    VARIANTS[name](Case(16, width, 512, device))
    case, took = Case(tokens, width, vocabulary, device), []
    beyond = 0.0
    for _ in range(repeats):
        case.hidden.grad = case.weight.grad = None
        before = memory(device, reset=True)
        began = time.perf_counter()
        VARIANTS[name](case)
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
        grads = (part.grad for part in (case.hidden, case.weight) if part.grad is not None)
        size = sum(grad.numel() * grad.element_size() for grad in grads) / 2**20
        beyond = max(beyond, memory(device) - before - size)
    checks = {"grad": float(case.weight.grad.float().norm()) if case.weight.grad is not None else 0.0}
    return {"MiB": beyond, "seconds": min(took), **checks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--one", help="run this variant here, and print its figures as JSON")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each variant")
    asked = parser.parse_args()
    size = [asked.tokens, asked.width, asked.vocabulary]
    if asked.one:
        print(json.dumps(one(asked.one, *size, asked.device, asked.repeats)))
        return
    print(f"T {size[0]:,}, H {size[1]:,}, V {size[2]:,}, {asked.device}, {torch.get_num_threads()} threads")
    base: dict[str, float] | None = None
    for name in asked.variants:
        words = ["--tokens", size[0], "--width", size[1], "--vocabulary", size[2]]
        words += ["--device", asked.device, "--repeats", asked.repeats, "--one", name]
        done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:10} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        base = base or found
        print(
            f"{name:10} {found['MiB']:9,.0f} MiB {found['MiB'] / max(base['MiB'], 1):6.1%}   {found['seconds']:7.2f} s "
            f"{found['seconds'] / base['seconds']:5.2f}x   |dW| {found['grad']:.4f}",
            flush=True,
        )
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps({"variant": name, "size": size, "device": asked.device} | found) + "\n")


if __name__ == "__main__":
    main()

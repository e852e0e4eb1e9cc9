"""The head alone, forward and backward: peak memory beyond inputs and gradients, and time, ours and other libraries'.

Each variant runs in a process of its own, one after the other, on the same numbers. It computes log pi, log pi_ref and
KL(pi_ref || pi) of T tokens, and the gradient of a weighted sum of the first and the last with respect to the hidden
states and the head; without a KL, log pi, log pi_ref and the gradient of the first. A CPU runs in float32, a GPU in
bfloat16. Timings are noisy: read the ratios. "products" is the lower bound: the matrix products that all ways need.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from common import apart, keep, memory
from torch import Tensor

NEEDS = frozenset({"log_prob", "ref_log_prob", "ref_kl"})


class Case:
    """The inputs: `hidden` and `weight` get gradients; `ref_hidden` and `ref_weight` do not."""

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
    """All logits of both models at once, by autograd."""
    log_p = (case.hidden @ case.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        log_q = (case.ref_hidden @ case.ref_weight.T).float().log_softmax(-1)
        _ = log_q.gather(1, case.targets[:, None])
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    case.loss(log_p.gather(1, case.targets[:, None])[:, 0], kl).backward()


def naive_log_probs(case: Case) -> None:
    """As `naive`, without the KL, as DPO, KTO, REBEL and DRO need it."""
    log_p = (case.hidden @ case.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        _ = (case.ref_hidden @ case.ref_weight.T).float().log_softmax(-1).gather(1, case.targets[:, None])
    (case.on_log_prob * log_p.gather(1, case.targets[:, None])[:, 0]).sum().backward()


def products(case: Case) -> None:
    """Only the four products of a forward and backward pass, tile by tile; the result is meaningless."""
    hidden, weight, tile = case.hidden.detach(), case.weight.detach(), 4096
    on_hidden, on_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(weight), tile):
        columns = slice(start, start + tile)
        logits, ref = hidden @ weight[columns].T, case.ref_hidden @ case.ref_weight[columns].T
        on_hidden.addmm_(ref, weight[columns])
        torch.mm(logits.T, hidden, out=on_weight[columns])
    case.hidden.grad, case.weight.grad = on_hidden, on_weight


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
    """Ours, coefficients known after measuring (DPO, KTO, REBEL, DRO)."""
    from valence.policies.fused import fused_likelihoods

    parts = fused_likelihoods(case.hidden, case.ref_hidden, case.targets, *_heads(case), needs=NEEDS)
    case.loss(parts["log_prob"], parts["ref_kl"]).backward()


def recompute_log_probs(case: Case) -> None:
    """Ours, coefficients known after measuring, without the KL."""
    from valence.policies.fused import fused_likelihoods

    needs = frozenset({"log_prob", "ref_log_prob"})
    parts = fused_likelihoods(case.hidden, case.ref_hidden, case.targets, *_heads(case), needs=needs)
    (case.on_log_prob * parts["log_prob"]).sum().backward()


def plain(case: Case) -> None:
    """Ours, the plain head: tiles of tokens, logits recomputed by gradient checkpointing."""
    from valence.policies.token_head import token_likelihoods

    parts = token_likelihoods(
        case.hidden, case.ref_hidden, case.targets, lambda hidden: (hidden @ case.weight.T).float(),
        lambda hidden: (hidden @ case.ref_weight.T).float(), vocabulary=len(case.weight), needs=NEEDS,
    )  # fmt: skip
    case.loss(parts["log_prob"], parts["ref_kl"]).backward()


def trl(case: Case) -> None:
    """TRL's two chunked functions for the same outputs, with the chunk size that TRL uses."""
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
    "naive": naive, "products": products, "ahead": ahead, "recompute": recompute, "plain": plain, "trl": trl,
    "naive, no KL": naive_log_probs, "recompute, no KL": recompute_log_probs,
}  # fmt: skip


def one(name: str, size: tuple[int, int, int], device: str, repeats: int) -> dict[str, float]:
    """One variant's peak MiB beyond inputs and gradients, and its fastest run in seconds."""
    # A small first call does the imports and the set-up, which are not timed.
    VARIANTS[name](Case(16, size[1], 512, device))
    case, took, beyond = Case(*size, device), [], 0.0
    for _ in range(repeats):
        case.hidden.grad = case.weight.grad = None
        before = memory(device, reset=True)
        began = time.perf_counter()
        VARIANTS[name](case)
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
        grads = (part.grad for part in (case.hidden, case.weight) if part.grad is not None)
        of_grads = sum(grad.numel() * grad.element_size() for grad in grads) / 2**20
        beyond = max(beyond, memory(device) - before - of_grads)
    norm = 0.0 if case.weight.grad is None else float(case.weight.grad.float().norm())
    return {"MiB": beyond, "seconds": min(took), "weight_grad_norm": norm}


def measure(variants: list[str], size: tuple[int, int, int], device: str, repeats: int) -> dict[str, Any]:
    """Variant -> its figures, or the error that it failed with; each runs in a process of its own."""
    words = ["--size", *size, "--device", device, "--repeats", repeats]
    return {name: apart(__file__, [*words, "--one", name]) for name in variants}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(4096, 1024, 128_256), help="tokens, width, vocabulary")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--one", help="run this variant in this process, and print its figures as JSON")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/results/performance")
    asked = parser.parse_args()
    size = (asked.size[0], asked.size[1], asked.size[2])
    if asked.one:
        print(json.dumps(one(asked.one, size, asked.device, asked.repeats)))
        return
    print(f"T {size[0]:,}, H {size[1]:,}, V {size[2]:,}, {asked.device}, {torch.get_num_threads()} threads")
    figures: dict[str, Any] = {}
    for name in asked.variants:
        figures |= measure([name], size, asked.device, asked.repeats)
        row = figures[name]
        if isinstance(row, str):
            print(f"{name:18} failed: {row}")
        else:
            norm = row["weight_grad_norm"]
            print(f"{name:18} {row['MiB']:9,.0f} MiB {row['seconds']:8.2f} s   |dW| {norm:.4f}", flush=True)
    if asked.keep:
        keep("head", {"size": size, "device": asked.device, "variants": figures})


if __name__ == "__main__":
    main()

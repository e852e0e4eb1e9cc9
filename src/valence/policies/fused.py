"""Per-token log pi, log pi_ref and exact KLs from final hidden states, without ever holding [tokens, V].

With z the policy's logits, r the reference's, p = softmax(z), q = softmax(r) and y the token of the action

  log pi = z_y - lse(z) · KL(ref‖π) = q·(r - z) - lse(r) + lse(z) · KL(π‖ref) = p·(z - r) - lse(z) + lse(r)

and for coefficients g (gradients of the loss with respect to the first two) the gradient on the logits is

  dz = g_log_prob (onehot_y - p) + g_ref_kl (p - q)

KL(π‖ref) is for reports: it is constant, as the learner takes it.

Two ways compute it:
- **recompute** (`fused_likelihoods`): the sums run over tiles of the vocabulary, with running maxima subtracted, and
  only lse(z) and lse(r) are stored. Backward computes each tile of logits again: 6 products with a head in all. For
  objectives whose coefficients depend on the likelihoods (DPO, KTO, REBEL, DRO).
- **coefficients known ahead** (`likelihoods_and_gradients`): the logits of a few tokens are held over the whole
  vocabulary, measured and turned into dz at once: 4 products, 3 with a frozen head. For objectives that are linear in
  the likelihoods (PMPO, supervised).

Sums and gradients are accumulated in float32 (float64 for float64 inputs), whatever the products run in.

Shape legend: M tokens · H hidden of the policy, G of the reference · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

COLUMNS = 4096
"""Columns of the vocabulary in a tile."""
ROWS = 2048
"""Tokens in a tile where logits are recomputed: with COLUMNS, 32 MiB of logits in float32."""
KERNEL_COLUMNS = 8192
"""Columns whose gradients the GPU kernels write at a time."""
HELD = 3 * 2**24
"""Logits of one model held at a time where coefficients are known ahead: 192 MiB in float32."""

Parts = dict[str, Float[Tensor, " M"]]
Sums = tuple[Float[Tensor, " M"], Float[Tensor, " M"], Float[Tensor, " M"]]
"""Of one model's logits over the whole vocabulary: (lse, the target's logit, the mean of r - z under the model)."""


@dataclass(frozen=True)
class LinearHead:
    """The map from hidden states to logits, post * cap * tanh((pre * hidden @ weight.T + bias) / cap).

    Args:
        weight: `[V, H]`; may be the tied embeddings.
        bias: `[V]`, or None.
        pre: scale of the hidden states (tied T5).
        cap: soft-capping (Gemma), or None.
        post: scale of the logits (Cohere, Granite), 1 / temperature with it.
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    pre: float = 1.0
    cap: float | None = None
    post: float = 1.0

    def detach(self) -> LinearHead:
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def logits(self, hidden: Tensor, columns: slice, out: Tensor) -> Tensor:
        """A tile of logits, written to `out`; the product is in `hidden`'s precision."""
        weight = self.weight[columns].to(hidden.dtype).T
        logits = torch.mm(hidden, weight, out=out) if out.dtype == hidden.dtype else out.copy_(hidden @ weight)
        if self.pre != 1.0:
            logits *= self.pre
        if self.bias is not None:
            logits += self.bias[columns]
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits.mul_(self.post) if self.post != 1.0 else logits

    def pull_back(self, grad: Tensor, logits: Tensor | None) -> Tensor:
        """The gradient with respect to hidden @ weight.T + bias, in place. `logits` are read only with a cap."""
        if self.cap is not None:
            assert logits is not None
            grad *= 1 - (logits / (self.cap * self.post)).square_()
        return grad.mul_(self.post) if self.post != 1.0 else grad


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums whose products run in `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def head_settings(model: Any, *, temperature: float = 1.0) -> tuple[Tensor | None, float, float | None, float]:
    """(bias, pre, cap, post) of a transformers model around its output layer, as in `LinearHead`.

    `bias` is BART's, `[1, V]`. `valence.policies.checks.check_head` compares the logits with the model's own.
    """
    config, post = model.config, 1 / temperature
    if isinstance(scale := getattr(config, "logit_scale", None), float):
        post *= scale
    if scaling := getattr(config, "logits_scaling", None):
        post /= scaling
    pre = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
    cap = getattr(config, "final_logit_softcapping", None) or None
    return getattr(model, "final_logits_bias", None), pre, cap, post


def linear_head(model: Any, *, temperature: float = 1.0) -> LinearHead | None:
    """A transformers model's head; None where it is more than a matrix (an adapter on it, quantisation).

    `valence.policies.token_head` then serves instead.
    """
    layer, (more, pre, cap, post) = model.get_output_embeddings(), head_settings(model, temperature=temperature)
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    bias = layer.bias
    if more is not None:
        bias = more[0] if bias is None else bias + more[0]
    return LinearHead(layer.weight, bias, pre, cap, post)


def _tiles(count: int, size: int) -> Iterator[slice]:
    """0 to `count` in slices of `size`; one empty slice for nothing."""
    for start in range(0, max(count, 1), size):
        yield slice(start, min(start + size, count))


class _Scratch:
    """Tiles whose memory is reused: on a CPU the page faults of a new tile cost more than the arithmetic in it."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, accumulation(dtype)
        self._tiles: dict[str, Tensor] = {}

    def tile(self, name: str, rows: int, columns: slice) -> Tensor:
        """`[rows, columns]` of undefined content; the same memory for the same name."""
        width = columns.stop - columns.start
        size = rows * width
        held = self._tiles.get(name)
        if held is None or held.numel() < size:
            self._tiles[name] = held = torch.empty(size, device=self.device, dtype=self.dtype)
        return held[:size].view(rows, width)


class _Sums:
    """Running sums over the tiles of one model's logits, for `count` tokens; `gap` sums r - z under the model."""

    def __init__(self, count: int, scratch: _Scratch) -> None:
        self.scratch = scratch
        self.most = torch.full((count,), -torch.inf, device=scratch.device, dtype=scratch.dtype)
        self.total, self.taken, self.gap = (torch.zeros_like(self.most) for _ in range(3))

    def add(self, logits: Tensor, gap: Tensor | None, targets: Tensor, columns: slice) -> None:
        place = (targets - columns.start).clamp(0, columns.stop - columns.start - 1)[:, None]
        self.taken += logits.gather(1, place)[:, 0] * ((targets >= columns.start) & (targets < columns.stop))
        most = torch.maximum(self.most, logits.amax(1))
        weight = self.scratch.tile("weight", len(targets), columns)
        fade, weight = (self.most - most).exp_(), torch.sub(logits, most[:, None], out=weight).exp_()
        self.total.mul_(fade).add_(weight.sum(1))
        if gap is not None:
            # The dot product of each row, without holding weight * gap.
            self.gap.mul_(fade).add_(torch.bmm(weight[:, None], gap[:, :, None])[:, 0, 0])
        self.most = most

    def close(self) -> Sums:
        return self.most + self.total.log(), self.taken, self.gap / self.total


def _quantities(wanted: frozenset[str], policy: Sums, reference: Sums | None) -> tuple[Parts, Tensor, Tensor]:
    """(the quantities in `wanted`, lse(z), lse(r))."""
    lse, taken, gap = policy
    parts, ref_lse = {"log_prob": taken - lse}, lse
    if reference is not None:
        ref_lse, ref_taken, ref_gap = reference
        parts |= {
            "ref_log_prob": ref_taken - ref_lse,
            # Rounding may leave a KL of zero below 0.
            "ref_kl": (ref_gap - ref_lse + lse).clamp_(min=0), "policy_kl": (-gap - lse + ref_lse).clamp_(min=0),
        }  # fmt: skip
    return {name: part for name, part in parts.items() if name in wanted}, lse, ref_lse


def _logit_gradient(
    logits: Tensor, ref: Tensor | None, lse: Tensor, ref_lse: Tensor, targets: Tensor, columns: slice,
    coefficients: Parts, head: LinearHead,
) -> Tensor:  # fmt: skip
    """dz of a tile, in place of `logits`; `ref` is overwritten too."""
    original = logits.clone() if head.cap is not None else None
    log_prob, ref_kl = coefficients.get("log_prob"), coefficients.get("ref_kl")
    grad = logits.sub_(lse[:, None]).exp_()
    scale = (0.0 if ref_kl is None else ref_kl) - (torch.zeros_like(lse) if log_prob is None else log_prob)
    grad.mul_(scale[:, None])
    if ref_kl is not None:
        assert ref is not None
        grad.sub_(ref.sub_(ref_lse[:, None]).exp_().mul_(ref_kl[:, None]))
    if log_prob is not None:
        which = ((targets >= columns.start) & (targets < columns.stop)).nonzero()[:, 0]
        grad[which, targets[which] - columns.start] += log_prob[which]
    return head.pull_back(grad, original)


class _Gradients:
    """The gradients of the hidden states, and of the head where it learns; that of its weight is added to `into`."""

    def __init__(self, problem: _Problem, *, weight: bool, bias: bool, into: Tensor | None = None) -> None:
        self.head, self.dtype = problem.head, problem.dtype
        zeros = partial(torch.zeros, device=problem.hidden.device, dtype=accumulation(problem.dtype))
        shape = problem.head.weight.shape
        self.hidden, self.bias = zeros(problem.hidden.shape), zeros(shape[0]) if bias else None
        self.weight = zeros(shape) if weight and into is None else into

    def add(self, grad: Tensor, hidden: Tensor, where: slice, columns: slice) -> None:
        """Add what `grad`, dz of a tile, gives; `hidden` and `where` are its tokens."""
        if self.bias is not None:
            self.bias[columns] += grad.sum(0)
        grad = grad.to(self.dtype)
        if self.head.pre != 1.0:
            grad = grad * self.head.pre
        _accumulate(self.hidden[where], grad, self.head.weight[columns].to(self.dtype))
        if self.weight is not None:
            _accumulate(self.weight[columns], grad.T, hidden)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _kernels(hidden: Tensor, dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, for half precision on an NVIDIA GPU; None elsewhere, where torch is as fast."""
    half = dtype in (torch.bfloat16, torch.float16)
    if hidden.device.type != "cuda" or not half or not len(hidden) or not find_spec("triton"):
        return None
    from valence.policies import fused_triton

    return fused_triton


@dataclass(frozen=True)
class _Problem:
    """One measurement: constant tensors and heads, and the quantities to compute."""

    hidden: Tensor
    ref_hidden: Tensor | None
    targets: Tensor
    head: LinearHead
    ref_head: LinearHead | None
    wanted: frozenset[str]
    dtype: torch.dtype

    def measure(
        self, coefficients: Parts | None = None, gradients: _Gradients | None = None
    ) -> tuple[Parts, Tensor, Tensor]:
        """(the quantities, lse(z), lse(r)), tile by tile; if `gradients` is given, pull back into it too."""
        coefficients = coefficients or {}
        if kernels := _kernels(self.hidden, self.dtype):
            parts, lse, ref_lse = _quantities(self.wanted, *kernels.sums(self))
            if gradients is not None:
                self.pull_back(coefficients, lse, ref_lse, gradients)
            return parts, lse, ref_lse
        pieces, scratch = [], _Scratch(self.hidden.device, self.dtype)
        for where in _tiles(len(self.targets), ROWS if gradients is None else max(1, HELD // len(self.head.weight))):
            rows, held = self.rows(where), []
            policy, reference = (_Sums(len(rows.targets), scratch) for _ in range(2))
            for columns in _tiles(len(self.head.weight), COLUMNS):
                logits, ref = rows.logits(columns, scratch, name="" if gradients is None else str(columns.start))
                gap = None
                if ref is not None and self.wanted & {"ref_kl", "policy_kl"}:
                    gap = torch.sub(ref, logits, out=scratch.tile("gap", len(rows.targets), columns))
                policy.add(logits, gap if "policy_kl" in self.wanted else None, rows.targets, columns)
                if ref is not None:
                    reference.add(ref, gap if "ref_kl" in self.wanted else None, rows.targets, columns)
                held.append((logits, ref, columns))
            closed = None if self.ref_head is None else reference.close()
            parts, lse, ref_lse = _quantities(self.wanted, policy.close(), closed)
            pieces.append(parts | {"lse": lse, "ref_lse": ref_lse})
            if gradients is None:
                continue
            part = {name: value[where] for name, value in coefficients.items()}
            for logits, ref, columns in held:
                grad = _logit_gradient(logits, ref, lse, ref_lse, rows.targets, columns, part, self.head)
                gradients.add(grad, rows.hidden, where, columns)
        parts = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return parts, parts.pop("lse"), parts.pop("ref_lse")

    def pull_back(self, coefficients: Parts, lse: Tensor, ref_lse: Tensor, gradients: _Gradients) -> None:
        """Compute each tile of logits again, and carry its gradient into `gradients`."""
        if kernels := _kernels(self.hidden, self.dtype):
            everything, hidden = slice(None), self.hidden.to(self.dtype)
            for columns in _tiles(len(self.head.weight), KERNEL_COLUMNS):
                grad = kernels.logit_gradient(self, columns, lse, ref_lse, coefficients)
                gradients.add(grad, hidden, everything, columns)
            return
        scratch = _Scratch(self.hidden.device, self.dtype)
        for where in _tiles(len(self.targets), ROWS):
            rows = self.rows(where)
            part = {name: value[where] for name, value in coefficients.items()}
            for columns in _tiles(len(self.head.weight), COLUMNS):
                logits, ref = rows.logits(columns, scratch, reference="ref_kl" in coefficients)
                one = (lse[where], ref_lse[where], rows.targets, columns, part, self.head)
                gradients.add(_logit_gradient(logits, ref, *one), rows.hidden, where, columns)

    def rows(self, where: slice) -> _Problem:
        """Some of the tokens, in the products' precision."""
        other = None if self.ref_hidden is None else self.ref_hidden[where].to(self.dtype)
        return replace(self, hidden=self.hidden[where].to(self.dtype), ref_hidden=other, targets=self.targets[where])

    def logits(
        self, columns: slice, scratch: _Scratch, *, reference: bool = True, name: str = ""
    ) -> tuple[Tensor, Tensor | None]:
        """A tile of the policy's logits and of the reference's; the next tile of the same `name` overwrites both."""
        ref, count = None, len(self.targets)
        if reference and self.ref_head is not None and self.ref_hidden is not None:
            ref = self.ref_head.logits(self.ref_hidden, columns, scratch.tile(f"reference {name}", count, columns))
        return self.head.logits(self.hidden, columns, scratch.tile(f"policy {name}", count, columns)), ref


class _Fused(torch.autograd.Function):
    """Logits are recomputed in backward. Outputs in the order of `_quantities`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, problem: _Problem) -> tuple[Tensor, ...]:
        parts, lse, ref_lse = problem.measure()
        # The first three are in `problem` too; autograd checks saved tensors for changes in place.
        ctx.save_for_backward(hidden, weight, bias, lse, ref_lse)
        ctx.problem, ctx.names = problem, tuple(parts)
        ctx.mark_non_differentiable(*(parts[name] for name in ("ref_log_prob", "policy_kl") if name in parts))
        ctx.set_materialize_grads(False)
        return tuple(parts.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        problem: _Problem = ctx.problem
        hidden, weight, bias, lse, ref_lse = ctx.saved_tensors
        coefficients = {name: grad for name, grad in zip(ctx.names, grads, strict=True) if grad is not None}
        _, on_weight, on_bias, _ = ctx.needs_input_grad
        gradients = _Gradients(problem, weight=on_weight, bias=on_bias)
        with torch.autocast(hidden.device.type, enabled=False):
            problem.pull_back(coefficients, lse, ref_lse, gradients)
        pairs = ((gradients.hidden, hidden), (gradients.weight, weight), (gradients.bias, bias))
        return *(None if grad is None else grad.to(of.dtype) for grad, of in pairs), None


def _problem(
    hidden: Tensor, ref_hidden: Tensor | None, targets: Tensor, head: LinearHead, ref_head: LinearHead | None,
    needs: frozenset[str], dtype: torch.dtype | None,
) -> _Problem:  # fmt: skip
    """The reference is left out where there is none or nothing in `needs` reads it."""
    if ref_hidden is None or ref_head is None or not needs - {"log_prob"}:
        ref_hidden, ref_head, needs = None, None, frozenset()
    wanted = needs | {"log_prob"}
    return _Problem(hidden.detach(), ref_hidden, targets, head.detach(), ref_head, wanted, dtype or hidden.dtype)


def fused_likelihoods(
    hidden: Float[Tensor, "M H"], ref_hidden: Float[Tensor, "M G"] | None, targets: Int[Tensor, " M"],
    head: LinearHead, ref_head: LinearHead | None, *, needs: frozenset[str], dtype: torch.dtype | None = None,
) -> Parts:  # fmt: skip
    """Per-token quantities at M action positions, each `[M]`, nats.

    "log_prob" and "ref_kl" are differentiable in `hidden` and in `head`.
    Source: PMPO paper, Eq. 17: the KL of a sequence is the sum of its tokens' full-vocabulary KLs.

    Args:
        hidden: the policy's last hidden state at the position that predicts each target.
        ref_hidden: the reference's, constant; its width may be another.
        targets: the action's tokens, in [0, V).
        head, ref_head: hidden -> logits.
        needs: which of "log_prob", "ref_log_prob", "ref_kl", "policy_kl"; all but the first need a reference.
        dtype: the precision of the products; by default that of the hidden states.
    """
    problem = _problem(hidden, ref_hidden, targets, head, ref_head, needs, dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        parts = _Fused.apply(hidden, head.weight, head.bias, problem)
    names = [name for name in ("log_prob", "ref_log_prob", "ref_kl", "policy_kl") if name in problem.wanted]
    return dict(zip(names, parts, strict=True))


@torch.no_grad()
def likelihoods_and_gradients(
    hidden: Float[Tensor, "M H"], ref_hidden: Float[Tensor, "M G"] | None, targets: Int[Tensor, " M"],
    head: LinearHead, ref_head: LinearHead | None, coefficients: Parts, *, needs: frozenset[str],
    dtype: torch.dtype | None = None, into: Tensor | None = None,
) -> tuple[Parts, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """As `fused_likelihoods`, and the gradient of sum(coefficient * quantity), both in one pass.

    A part of `head` that requires no gradient gets none.

    Args:
        coefficients: "log_prob" and "ref_kl" -> the loss's gradient with respect to each token's, `[M]`.
        into: `[V, H]` in the precision of accumulation, such as the weight's `.grad`: d weight is added to it.
    Returns:
        (quantities, d hidden, d weight or None, d bias or None), the gradients in the precision of accumulation.
    """
    problem = _problem(hidden, ref_hidden, targets, head, ref_head, needs, dtype)
    learn_bias = head.bias is not None and head.bias.requires_grad
    gradients = _Gradients(problem, weight=head.weight.requires_grad, bias=learn_bias, into=into)
    with torch.autocast(hidden.device.type, enabled=False):
        parts, _, _ = problem.measure(coefficients, gradients)
    return parts, gradients.hidden, gradients.weight, gradients.bias

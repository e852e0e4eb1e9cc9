"""The fused head's tiles on a GPU: products, running sums and gradients of the logits computed in one kernel each.

`sums` measures without writing a logit to memory: each program takes a block of tokens and a part of the vocabulary,
and the parts are joined afterwards. `logit_gradient` computes a tile of logits again and writes only its gradient, in
the products' precision, for the two products that pull back. Formulas: `valence.policies.fused`.

Shape legend: M tokens · H hidden of the policy, G of the reference · V vocabulary · P parts of the vocabulary.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# A kernel is called with its grid in brackets and its strides by Triton, which a type checker does not follow.
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, DEPTH = 128, 128, 64
"""A program's block: tokens, columns of the vocabulary, and hidden units multiplied at a time."""
PROGRAMS = 512
"""Programs started, approximately: a few for each multiprocessor."""


@triton.jit
def _logits(
    hidden, weight, bias, rows, columns, M, V, H, pre, cap, post,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile [ROWS, COLUMNS] of logits, float32; zeros stand outside the matrices."""
    # V times H passes 2^31 in large models.
    rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, H, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        left = tl.load(
            hidden + rows[:, None] * H + depth[None, :], mask=(rows[:, None] < M) & (depth[None, :] < H), other=0.0
        )
        right = tl.load(
            weight + columns[:, None] * H + depth[None, :],
            mask=(columns[:, None] < V) & (depth[None, :] < H), other=0.0,
        )  # fmt: skip
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    total = total * pre
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)[None, :]
    if HAS_CAP:
        # tanh(x) = 2 sigmoid(2x) - 1
        total = cap * (2 * tl.sigmoid(2 * total / cap) - 1)
    return total * post


@triton.jit
def _sums_kernel(
    out, hidden, weight, bias, ref_hidden, ref_weight, ref_bias, targets, M, V, H, G, per_part,
    pre, cap, post, ref_pre, ref_cap, ref_post,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_REF: tl.constexpr, REF_BIAS: tl.constexpr,
    REF_CAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[p, :, m]: largest logit, sum of exponentials, taken logit, and p.(r - z); the same of the reference."""
    part = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets + rows, mask=rows < M, other=0)
    low = -float("inf")
    lowest, zero = tl.full((ROWS,), low, dtype=tl.float32), tl.zeros((ROWS,), dtype=tl.float32)
    most, total, taken, gap = lowest, zero, zero, zero
    ref_most, ref_total, ref_taken, ref_gap = lowest, zero, zero, zero
    end = tl.minimum((part + 1) * per_part, V)
    for start in range(part * per_part, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = (columns < V)[None, :]
        chosen = columns[None, :] == target[:, None]
        z = _logits(
            hidden, weight, bias, rows, columns, M, V, H, pre, cap, post, HAS_BIAS, HAS_CAP, ROWS, COLUMNS, DEPTH
        )
        taken += tl.sum(tl.where(chosen, z, 0.0), 1)
        now = tl.maximum(most, tl.max(tl.where(inside, z, low), 1))
        p = tl.where(inside, tl.exp(z - now[:, None]), 0.0)
        fade = tl.exp(most - now)
        total = total * fade + tl.sum(p, 1)
        most = now
        if HAS_REF:
            r = _logits(
                ref_hidden, ref_weight, ref_bias, rows, columns, M, V, G, ref_pre, ref_cap, ref_post, REF_BIAS,
                REF_CAP, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            gap = gap * fade + tl.sum(p * (r - z), 1)
            ref_taken += tl.sum(tl.where(chosen, r, 0.0), 1)
            now = tl.maximum(ref_most, tl.max(tl.where(inside, r, low), 1))
            q = tl.where(inside, tl.exp(r - now[:, None]), 0.0)
            fade = tl.exp(ref_most - now)
            ref_total = ref_total * fade + tl.sum(q, 1)
            ref_gap = ref_gap * fade + tl.sum(q * (r - z), 1)
            ref_most = now
    place = out + part * 8 * M + rows
    keep = rows < M
    tl.store(place, most, mask=keep)
    tl.store(place + M, total, mask=keep)
    tl.store(place + 2 * M, taken, mask=keep)
    tl.store(place + 3 * M, gap, mask=keep)
    if HAS_REF:
        tl.store(place + 4 * M, ref_most, mask=keep)
        tl.store(place + 5 * M, ref_total, mask=keep)
        tl.store(place + 6 * M, ref_taken, mask=keep)
        tl.store(place + 7 * M, ref_gap, mask=keep)


@triton.jit
def _gradient_kernel(
    out, hidden, weight, bias, ref_hidden, ref_weight, ref_bias, targets, lse, ref_lse, on_log_prob, on_ref_kl,
    M, V, H, G, first, width, pre, cap, post, ref_pre, ref_cap, ref_post,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_REF: tl.constexpr, REF_BIAS: tl.constexpr,
    REF_CAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out [M, width]: the loss's gradient with respect to hidden @ weight.T * pre + bias, columns from `first` on."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    local = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    columns = first + local
    keep = rows < M
    target = tl.load(targets + rows, mask=keep, other=0)
    sum_z = tl.load(lse + rows, mask=keep, other=0.0)
    on_taken = tl.load(on_log_prob + rows, mask=keep, other=0.0)
    z = _logits(hidden, weight, bias, rows, columns, M, V, H, pre, cap, post, HAS_BIAS, HAS_CAP, ROWS, COLUMNS, DEPTH)
    p = tl.exp(z - sum_z[:, None])
    grad = on_taken[:, None] * (tl.where(columns[None, :] == target[:, None], 1.0, 0.0) - p)
    if HAS_REF:
        sum_r = tl.load(ref_lse + rows, mask=keep, other=0.0)
        on_kl = tl.load(on_ref_kl + rows, mask=keep, other=0.0)
        r = _logits(
            ref_hidden, ref_weight, ref_bias, rows, columns, M, V, G, ref_pre, ref_cap, ref_post, REF_BIAS, REF_CAP,
            ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        grad += on_kl[:, None] * (p - tl.exp(r - sum_r[:, None]))
    if HAS_CAP:
        bent = z / (cap * post)
        grad = grad * (1 - bent * bent)
    rows = rows.to(tl.int64)
    inside = keep[:, None] & (local < width)[None, :] & (columns < V)[None, :]
    tl.store(out + rows[:, None] * width + local[None, :], (grad * post).to(out.dtype.element_ty), mask=inside)


def _arguments(problem: Any) -> tuple[list[Tensor], list[float], dict[str, Any]]:
    """(tensors in the products' precision, scales, the kernels' constants); the policy's stand in for no reference."""
    models = [(problem.hidden, problem.head)]
    if problem.ref_head is not None:
        models.append((problem.ref_hidden, problem.ref_head))
    tensors, scales = [], []
    for states, one in models:
        weight = one.weight.to(problem.dtype).contiguous()
        bias = weight if one.bias is None else one.bias.contiguous()
        tensors += [states.to(problem.dtype).contiguous(), weight, bias]
        scales += [one.pre, one.cap or 1.0, one.post]
    repeats, head, other = 3 - len(models), problem.head, models[-1][1]
    return tensors * repeats, scales * repeats, {
        "HAS_BIAS": head.bias is not None, "HAS_CAP": head.cap is not None, "HAS_REF": len(models) == 2,
        "REF_BIAS": other.bias is not None, "REF_CAP": other.cap is not None,
        "ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH,
    }  # fmt: skip


def sums(problem: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """`valence.policies.fused.Sums` of the policy and, in a `_Problem` with one, of the reference; float32."""
    count, vocabulary = len(problem.targets), len(problem.head.weight)
    blocks = triton.cdiv(count, ROWS)
    # Each part has at least one block of columns, so that its sums are not empty.
    parts = max(1, min(triton.cdiv(PROGRAMS, blocks), triton.cdiv(vocabulary, COLUMNS)))
    per_part = COLUMNS * triton.cdiv(triton.cdiv(vocabulary, COLUMNS), parts)
    parts = triton.cdiv(vocabulary, per_part)
    out = torch.empty(parts, 8, count, device=problem.hidden.device, dtype=torch.float32)
    tensors, scales, constants = _arguments(problem)
    sizes = (count, vocabulary, tensors[0].shape[1], tensors[3].shape[1])
    _sums_kernel[(blocks, parts)](out, *tensors, problem.targets, *sizes, per_part, *scales, **constants)

    def join(most: Tensor, total: Tensor, taken: Tensor, gap: Tensor) -> tuple[Tensor, ...]:
        top = most.amax(0)
        fade = (most - top).exp()
        whole = (total * fade).sum(0)
        return top + whole.log(), taken.sum(0), (gap * fade).sum(0) / whole

    policy, reference = out[:, :4].unbind(1), out[:, 4:].unbind(1)
    return join(*policy), None if problem.ref_head is None else join(*reference)


def logit_gradient(
    problem: Any, columns: slice, lse: Tensor, ref_lse: Tensor, coefficients: dict[str, Tensor]
) -> Tensor:
    """The gradient on a tile of logits before scaling and capping, `[M, columns]`, in the products' precision.

    Args:
        lse, ref_lse: of the two models' logits, `[M]`.
        coefficients: of "log_prob" and "ref_kl", each `[M]`; one that is missing is 0.
    """
    count, width = len(problem.targets), columns.stop - columns.start
    out = torch.empty(count, width, device=problem.hidden.device, dtype=problem.dtype)
    nothing = torch.zeros_like(lse)
    tensors, scales, constants = _arguments(problem)
    sizes = (count, len(problem.head.weight), tensors[0].shape[1], tensors[3].shape[1], columns.start, width)
    grads = (coefficients.get(name, nothing).float().contiguous() for name in ("log_prob", "ref_kl"))
    grid = (triton.cdiv(count, ROWS), triton.cdiv(width, COLUMNS))
    _gradient_kernel[grid](out, *tensors, problem.targets, lse, ref_lse, *grads, *sizes, *scales, **constants)
    return out

"""Trials of a loaded language model: whether our path to its logits is right, and which shapes of input it can read."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from valence.errors import UserError, one_line
from valence.policies.fused import linear_head
from valence.policies.language import LanguagePolicy
from valence.policies.rows import Rows
from valence.policies.shared_prompt import attends_everywhere, make_trees
from valence.policies.token_head import model_logits


def reason(error: BaseException) -> str:
    """A library's error message on one line, with the error's type where the text alone says little."""
    text = one_line(error)
    return one_line(f"{type(error).__name__} {text}") if isinstance(error, KeyError) or not text else text


def check_head(policy: LanguagePolicy) -> None:
    """UserError if our logits are not the model's own (log-probs would be silently wrong), or it cannot be run."""
    name = type(policy.core).__name__
    try:
        with _plain_precision(policy):
            ours, theirs = _both_logits(policy)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's own code may fail in any way
        raise UserError(f"{name} cannot be run as a language policy: {reason(error)}") from error
    if not theirs.isfinite().all():
        raise UserError(
            f"{name} gives logits that are not finite: its weights are damaged, or overflow in this `dtype`"
        )
    theirs = torch.log_softmax(theirs, -1)
    tolerance = 1e-3 if policy.model.dtype == torch.float32 and not flash(policy) else 0.1
    for logits in ours:
        log_p = torch.log_softmax(logits, -1)
        if not torch.allclose(log_p, theirs, atol=tolerance):
            raise UserError(
                f"{name} turns hidden states into logits in a way Valence does not know "
                f"(largest difference {(log_p - theirs).abs().max().item():.3g}); please report this model"
            )


def flash(policy: LanguagePolicy) -> bool:
    """Whether attention runs by kernels for sequences of varying length."""
    return "flash" in (policy.core.config._attn_implementation or "")


def can_share_prompts(policy: LanguagePolicy) -> bool:
    """Whether the model reads completions of one prompt as one sequence as it reads them one by one: tried on few."""
    trees = [[0, 1], [2, 3]]
    everywhere = attends_everywhere(policy.core.config)
    return everywhere and _reads_alike(policy, lambda rows: policy.tree_hidden(make_trees(rows, trees)))


def can_pack(policy: LanguagePolicy) -> bool:
    """Whether the model reads rows one after another as one sequence as it reads them one by one: tried likewise."""
    return _reads_alike(policy, policy.packed_hidden)


@torch.no_grad()
def _reads_alike(policy: LanguagePolicy, read: Callable[[Rows], Tensor]) -> bool:
    """Whether `read` gives the same hidden states of four rows, two each of two prompts, as reading them one by one."""
    numbered = "position_ids" in inspect.signature(policy.core.base_model.forward).parameters
    if policy.encoder_decoder or not numbered:
        return False
    generator = torch.Generator().manual_seed(0)
    context, steps = (torch.randint(policy.vocabulary, (4, width), generator=generator) for width in (4, 24))
    # The first completion is long: a model that numbers or masks wrongly is then far off on the second.
    context[1], context[3] = context[0], context[2]
    context_mask = torch.tensor([[False, True, True, True]] * 2 + [[True] * 4] * 2)
    mask = torch.arange(24)[None] < torch.tensor([[24], [9], [20], [1]])
    rows = Rows(context, context_mask, steps, mask, torch.tensor([0, 0, 1, 1])).to(policy.device)
    try:
        with _plain_precision(policy):
            ours, theirs = read(rows), policy.action_hidden(rows)[rows.mask]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's own code may fail in any way: it then reads row by row
        return False
    exact = next(policy.model.parameters()).dtype == torch.float32 and not flash(policy)
    difference = (ours - theirs).float().square().mean().sqrt() / theirs.float().square().mean().sqrt()
    return bool(ours.isfinite().all()) and float(difference) <= (1e-4 if exact else 1e-2)


def _plain_precision(policy: LanguagePolicy) -> torch.autocast:
    """Not the mixed precision, whose rounding would hide an error; but flash attention runs in no other."""
    return policy.precision() if flash(policy) else torch.autocast(policy.device.type, enabled=False)


@torch.no_grad()
def _both_logits(policy: LanguagePolicy) -> tuple[list[Tensor], Tensor]:
    """(by our paths, the model's own), float32, of a few tokens."""
    ids, steps = (torch.tensor([row], device=policy.device) % policy.vocabulary for row in ([3, 5, 4], [2, 6, 3]))
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden = policy.action_hidden(Rows(ids, mask, steps, mask, torch.zeros_like(ids[:, 0])))[0]
    ours = [model_logits(policy.core, hidden)]
    if policy.fused and (head := linear_head(policy.core)) is not None:
        ours.append(head.logits(hidden, slice(None), torch.empty_like(ours[0])))
    if policy.encoder_decoder:
        start = torch.full_like(steps[:, :1], policy.core.config.decoder_start_token_id)
        theirs = policy.model(input_ids=ids, decoder_input_ids=torch.cat([start, steps[:, :-1]], 1)).logits[0]
    else:
        theirs = policy.model(input_ids=torch.cat([ids, steps], 1)).logits[0, 2:-1]
    return ours, theirs.float()

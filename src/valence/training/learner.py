"""One update, in three beats: measure, judge, pull back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from valence.critics import trainable_parameters
from valence.errors import UserError
from valence.protocols import Critic, Objective, Policy, Reference
from valence.types import Batch, Feedback, Labels, Likelihood, Preferences, Rewards, Target

CONSTANT = frozenset({"ref_log_prob", "policy_kl"})
WATCHED = frozenset({"log_prob", "ref_log_prob", "ref_kl"})


def signs(feedback: Feedback) -> Float[Tensor, "N K"]:
    """+1 for actions on the better side, -1 on the worse, 0 between: to report what moves, whatever the feedback."""
    if isinstance(feedback, Labels):
        return feedback.sign.float() * feedback.present
    if isinstance(feedback, Preferences):
        edge = torch.where(feedback.observed, 2 * feedback.win - 1, 0.0).sum(-1)
        return edge.sign() * feedback.present
    assert isinstance(feedback, Rewards)
    value = feedback.value.masked_fill(~feedback.present, 0.0)
    mean = value.sum() / feedback.present.sum().clamp(min=1)
    return (value - mean).sign() * feedback.present


def count_tokens(batch: Batch) -> list[int]:
    """Steps of each context's actions, and where the context is made of tokens, its own for each action."""
    steps, actions = batch.action.mask.sum((1, 2)), batch.action.mask.any(-1).sum(-1)
    own = getattr(batch.context, "mask", None)
    return (steps if own is None else steps + actions * own.sum(-1)).tolist()


@dataclass
class Learner:
    """Owns what learns: the policy, its critic and their optimizers.

    Args:
        policy: what is improved.
        objective: what judges it.
        reference: what the KL is to; None only where the objective needs none.
        critic: fills `Likelihood.value`; None where the objective needs none.
        optimizers: "policy"; "value" where there is a critic with parameters of its own; "dual" where the objective
            learns something on the side (MPO's temperatures).
        warmup_steps: the learning rates rise linearly over so many steps.
        total_steps: where given, the learning rates fall linearly to 0 at this step after the warm-up.
        max_grad_norm: gradients are clipped to it, policy and critic apart; 0 does not clip.
        micro_batch_size: contexts measured at a time; 0 takes the batch whole. The gradient is the same.
        micro_batch_tokens: steps measured at a time, with those of a context where it has any (a prompt's tokens,
            once for each action); 0 does not limit them. A context alone may exceed it.
    """

    policy: Policy
    objective: Objective
    reference: Reference | None
    optimizers: dict[str, torch.optim.Optimizer]
    critic: Critic | None = None
    warmup_steps: int = 0
    total_steps: int | None = None
    max_grad_norm: float = 1.0
    micro_batch_size: int = 0
    micro_batch_tokens: int = 0
    step: int = 0
    base_lrs: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "max_grad_norm", "micro_batch_size", "micro_batch_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 0")
        asked = self.objective.needs | self.objective.frozen_needs
        if self.reference is None and asked & {"ref_log_prob", "ref_kl", "policy_kl", "mismatched"}:
            raise ValueError(f"{type(self.objective).__name__} needs a reference policy, and none was given")
        if self.critic is None and "value" in asked:
            raise ValueError(f"{type(self.objective).__name__} needs a critic, and none was given")
        if self._duals() and "dual" not in self.optimizers:
            raise ValueError(f"{type(self.objective).__name__} needs an optimizer called 'dual' for its state")
        self.base_lrs = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def update(
        self, batch: Batch, *, watch: bool = False, epochs: int = 1, minibatch_size: int = 0
    ) -> dict[str, float]:
        """Learn from `batch`: one optimizer step, or with `epochs` and `minibatch_size` several.

        What the objective aims at (advantages, labels, baselines) is made once, from the whole batch, before the first.

        Args:
            watch: also measure what the objective does not need but a person wants to see: exact KL, and how far
                accepted and rejected log-likelihoods have drifted from the reference.
            epochs: how often each context is learned from.
            minibatch_size: contexts an optimizer step; 0 takes the batch whole.
        Returns:
            loss, grad_norm, the objective's metrics, and what was watched: means over the steps, the batch each.
        Raises:
            TypeError: the objective does not take this kind of feedback.
            FloatingPointError: the loss or its gradient is not finite; that step was not taken.
            UserError: the accelerator's memory is full.
        """
        try:
            return self._update(batch, watch=watch, epochs=epochs, minibatch_size=minibatch_size)
        except torch.OutOfMemoryError as error:
            self._zero_grad()
            raise UserError(
                f"out of memory at step {self.step + 1}, with {batch.num_contexts} contexts a batch: try "
                "--micro-batch-size 1 --gradient-checkpointing, then --lora-rank 16 --dtype bfloat16"
            ) from error

    def _update(self, batch: Batch, *, watch: bool, epochs: int, minibatch_size: int) -> dict[str, float]:
        if not isinstance(batch.feedback, self.objective.accepts):
            wanted = " or ".join(kind.__name__ for kind in self.objective.accepts)
            raise TypeError(f"{type(self.objective).__name__} takes {wanted}, not {type(batch.feedback).__name__}")
        with torch.no_grad():
            target = self.objective.prepare(batch, self._frozen(batch))
        # Which side an action is on is said by the whole batch: a reward is above or below its mean.
        sign = signs(batch.feedback) if watch and self.reference is not None else None
        size = minibatch_size or batch.num_contexts
        found: list[dict[str, float]] = []
        for _ in range(epochs):
            for start in range(0, batch.num_contexts, size):
                rows = slice(start, min(start + size, batch.num_contexts))
                whole = size >= batch.num_contexts
                # What is watched is of the policy before it learns from these contexts.
                seen = None if sign is None or len(found) * size >= batch.num_contexts else sign[rows]
                aim = target if whole else target.minibatch(rows)
                found.append(self._step(batch if whole else batch.select(rows), aim, seen))
        names = dict.fromkeys(name for figures in found for name in figures)
        values = {name: [figures[name] for figures in found if name in figures] for name in names}
        return {name: sum(some) / len(some) for name, some in values.items()}

    def _step(self, batch: Batch, target: Target, sign: Tensor | None) -> dict[str, float]:
        """One optimizer step."""
        loss, sums, weights = 0.0, dict[str, float](), dict[str, float]()
        for rows in self._micro_batches(batch):
            share, figures = self._accumulate(
                batch.select(rows), target.select(rows), None if sign is None else sign[rows]
            )
            loss += share
            # A figure that a micro-batch has no members for is not among its figures: it must not count as 0.
            for name, (value, weight) in figures.items():
                sums[name] = sums.get(name, 0.0) + value * weight
                weights[name] = weights.get(name, 0.0) + weight
        metrics = {"loss": loss} | {name: total / weights[name] for name, total in sums.items()}
        if not torch.isfinite(torch.tensor(metrics["loss"])):
            self._zero_grad()
            raise FloatingPointError(f"the loss is {metrics['loss']} at step {self.step + 1}: lower the learning rate")
        metrics |= self._optimize()
        return metrics

    def _micro_batches(self, batch: Batch) -> Iterator[slice]:
        size, start, held = self.micro_batch_size or batch.num_contexts, 0, 0
        if not self.micro_batch_tokens:
            for start in range(0, batch.num_contexts, size):
                yield slice(start, min(start + size, batch.num_contexts))
            return
        for place, tokens in enumerate(count_tokens(batch)):
            if place > start and (place - start == size or held + tokens > self.micro_batch_tokens):
                yield slice(start, place)
                start, held = place, 0
            held += tokens
        yield slice(start, batch.num_contexts)

    def _frozen(self, batch: Batch) -> Likelihood | None:
        """What `prepare` asks for, measured micro-batch by micro-batch without gradient."""
        asked = self.objective.frozen_needs
        if not asked:
            return None
        if asked == {"value"}:
            assert self.critic is not None
            values = [self.critic.value(batch.select(rows)) for rows in self._micro_batches(batch)]
            return Likelihood(log_prob=torch.zeros_like(values[0][:0]), value=torch.cat(values))
        needs = asked
        if "mismatched" in asked:
            if batch.mismatched is None:
                raise ValueError(f"{type(self.objective).__name__} needs the source to give mismatched completions")
            present = batch.mismatched.mask.any(-1)
            batch = Batch(batch.context, batch.mismatched, Labels(present.long(), present))
            needs = (asked - {"mismatched"}) | {"log_prob", "ref_log_prob"}
        pieces = [
            self.policy.likelihood(batch.select(rows), self.reference, needs).detach()
            for rows in self._micro_batches(batch)
        ]
        names = [item.name for item in fields(Likelihood) if getattr(pieces[0], item.name) is not None]
        return Likelihood(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in names})

    def _accumulate(
        self, batch: Batch, target: Target, sign: Tensor | None
    ) -> tuple[float, dict[str, tuple[float, float]]]:
        """The three beats on one micro-batch: (its share of the loss, name -> (mean, weight)); gradients add up in
        `.grad`. With `sign [N, K]`, the better and worse actions, also what is watched."""
        # 1. measure
        needs = self.objective.needs
        asked = (needs | WATCHED if sign is not None else needs) - {"value"}
        ahead = self._coefficients(batch, target)
        if ahead is not None:
            # Known beforehand: the first beat and the third are one.
            measured = self.policy.likelihood_and_backward(  # pyright: ignore[reportAttributeAccessIssue]
                batch, self.reference, asked, ahead
            )
        else:
            measured = self.policy.likelihood(batch, self.reference, asked)
        value = self.critic.value(batch) if self.critic is not None and "value" in needs else None
        # 2. judge, on leaves cut off from any graph
        likelihood = replace(measured.detach(), value=None if value is None else value.detach())
        live = {name for name in needs - CONSTANT if getattr(likelihood, name) is not None}
        leaves = {name: getattr(likelihood, name).requires_grad_() for name in sorted(live)}
        loss = self.objective(likelihood, target, self.objective.state())
        total = loss.total(target.size)
        duals = self._duals()
        found = torch.autograd.grad(total, [*leaves.values(), *duals], allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=False) if grad is not None}
        for dual, grad in zip(duals, found[len(leaves) :], strict=True):
            if grad is not None:
                dual.grad = grad if dual.grad is None else dual.grad + grad
        # 3. pull back
        if value is not None and "value" in grads:
            value.backward(grads.pop("value"))
        if ahead is None:
            self.policy.backward(batch, self.reference, measured, grads)
        # How many members an objective's mean has is not said: contexts stand for them.
        figures = {name: (float(metric), float(batch.num_contexts)) for name, metric in loss.metrics.items()}
        return total.item(), figures | ({} if sign is None else self._watch(batch, likelihood, sign))

    def _coefficients(self, batch: Batch, target: Target) -> dict[str, Tensor] | None:
        """The loss's gradient with respect to the likelihoods, where it does not depend on them and the policy has a
        use for that; else None."""
        linear = getattr(self.objective, "linear", False) and hasattr(self.policy, "likelihood_and_backward")
        if not linear or "value" in self.objective.needs:
            return None
        mask, names = batch.action.mask, sorted(self.objective.needs - CONSTANT)
        leaves = {name: torch.zeros(mask.shape, device=mask.device, requires_grad=True) for name in names}
        loss = self.objective(Likelihood(mask=mask, **leaves), target, self.objective.state()).total(target.size)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}

    def _duals(self) -> list[torch.nn.Parameter]:
        state = self.objective.state()
        return [] if state is None else list(trainable_parameters(state))

    def _watch(self, batch: Batch, likelihood: Likelihood, sign: Tensor) -> dict[str, tuple[float, float]]:
        total = likelihood.detach().total()
        assert total.ref_log_prob is not None and total.ref_kl is not None
        drift = total.log_prob - total.ref_log_prob

        parts = {
            "kl_ref_policy_on_rows": (total.ref_kl, batch.present),
            "accepted_drift": (drift, sign > 0),
            "rejected_drift": (drift, sign < 0),
        }
        return {
            name: (float(values[keep].mean()), float(keep.sum()))
            for name, (values, keep) in parts.items()
            if bool(keep.any())
        }

    def _optimize(self) -> dict[str, float]:
        norms: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            parameters = [part for group in optimizer.param_groups for part in group["params"]]
            limit = self.max_grad_norm or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            norms["grad_norm" if name == "policy" else f"{name}_grad_norm"] = float(norm)
        for name, norm in norms.items():
            if not math.isfinite(norm):
                self._zero_grad()
                raise FloatingPointError(f"{name} is {norm} at step {self.step + 1}: lower the learning rate")
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.base_lrs[name] * self._schedule()
            optimizer.step()
        self._zero_grad()
        self.step += 1
        if self.reference is not None and hasattr(self.reference, "after_step"):
            self.reference.after_step(self.policy, self.step)  # pyright: ignore[reportAttributeAccessIssue]
        return norms

    def _schedule(self) -> float:
        warm = min(1.0, (self.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.total_steps is None or self.step < self.warmup_steps:
            return warm
        return max(0.0, (self.total_steps - self.step) / max(1, self.total_steps - self.warmup_steps))

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


def make_optimizer(
    module: Any, *, kind: str, lr: float, weight_decay: float, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with the DRO paper's decay of 0.8.

    Adafactor's steps are relative to the size of each weight, and one of size 0 would hardly leave it (torch steps it
    by a thousandth of the rate). Weights that are all zero when this is called (a value head, LoRA's B) move instead
    as if they had the usual size of a fresh one, 1 / sqrt(fan-in).

    Args:
        eps: AdamW's; to be small against the gradients of a loss of a small scale.
    Raises:
        ValueError: an unknown kind, or nothing to train.
    """
    parameters = list(trainable_parameters(module))
    if not parameters:
        raise ValueError("nothing to train: no parameter requires a gradient")
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, eps=eps)
    if kind == "adafactor":
        return torch.optim.Adafactor(_by_size(parameters), lr=lr, beta2_decay=-0.8, weight_decay=weight_decay)
    raise ValueError(f"optimizer is {kind!r}, and must be adamw or adafactor")


def _by_size(parameters: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Adafactor's groups: what has a size, and what starts at zero with the size that it is to be taken for."""
    sized: list[torch.nn.Parameter] = []
    zero: dict[float, list[torch.nn.Parameter]] = {}
    for part in parameters:
        if bool(part.detach().any()):
            sized.append(part)
        else:
            # A bias adds to its output whole: its fan-in is 1.
            zero.setdefault(part.shape[-1] ** -0.5 if part.dim() > 1 else 1.0, []).append(part)
    groups: list[dict[str, Any]] = [{"params": sized}] if sized else []
    return groups + [{"params": parts, "eps": (None, size)} for size, parts in zero.items()]

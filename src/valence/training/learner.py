"""One update, in three beats: measure, judge, pull back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from valence.critics import trainable_parameters
from valence.errors import UserError
from valence.feedback.conversions import signs
from valence.objectives.common import require_feedback
from valence.protocols import Critic, LinearPolicy, Objective, Policy, Reference
from valence.types import Batch, Labels, Likelihood, Target, TokenContext, select_rows

CONSTANT = frozenset({"ref_log_prob", "policy_kl"})
"""The quantities of a likelihood that have no gradient."""
MONITORED = frozenset({"log_prob", "ref_log_prob", "ref_kl"})
"""The quantities that the monitored figures are made of."""


def count_tokens(batch: Batch) -> list[int]:
    """How many tokens each context takes: the steps of its actions, and the prompt once for each action."""
    steps, actions = batch.action.mask.sum((1, 2)), batch.action.mask.any(-1).sum(-1)
    if isinstance(batch.context, TokenContext):
        steps = steps + actions * batch.context.mask.sum(-1)
    return steps.tolist()


@dataclass
class Learner:
    """Updates a policy, and its critic, by an objective.

    Args:
        reference: the policy that KLs are to; None if the objective needs none.
        optimizers: "policy"; "value" for a critic with parameters; "dual" for an objective with a state (MPO).
        critic: gives `Likelihood.value`; None if the objective needs none.
        warmup_steps: number of steps over which the learning rates rise linearly to their full size.
        total_steps: the step at which the learning rates, falling linearly after the warm-up, are 0; None: constant.
        max_grad_norm: gradients are clipped to this norm, policy and critic separately; 0 does not clip.
        micro_batch_size: contexts measured at a time; 0 measures the batch at once. The gradient is the same.
        micro_batch_tokens: tokens measured at a time (see `count_tokens`), or one context; 0 has no limit.
        base_lrs: name of an optimizer -> its full learning rate, read from the optimizers.
    Raises:
        ValueError: a number is negative, or the objective needs a part that is None.
    """

    policy: Policy
    objective: Objective[Any]
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
            if not vars(self)[name] >= 0:
                raise ValueError(f"`{name}` is {vars(self)[name]}, and must be at least 0")
        asked, who = self.objective.needs | self.objective.frozen_needs, type(self.objective).__name__
        if self.reference is None and asked & {"ref_log_prob", "ref_kl", "policy_kl", "mismatched"}:
            raise ValueError(f"{who} needs a reference policy: set `reference`")
        if self.critic is None and "value" in asked:
            raise ValueError(f"{who} needs a critic: set `critic`")
        if self._duals() and "dual" not in self.optimizers:
            raise ValueError(f"{who} has a state that learns: `optimizers` must have one called 'dual' for it")
        self.base_lrs = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def update(
        self, batch: Batch, *, monitor: bool = False, num_epochs: int = 1, minibatch_size: int = 0
    ) -> dict[str, float]:
        """Learn from `batch` in one optimizer step, or in several with `num_epochs` and `minibatch_size`.

        The objective's target (advantages, baselines) is made once, from all of the batch, before the first step.

        Args:
            monitor: also measure figures that the loss does not need: the exact KL, and how far the log-likelihoods of
                the better and the worse actions have moved from the reference.
            num_epochs: how often each context is learned from.
            minibatch_size: contexts of each optimizer step; 0 takes all.
        Returns:
            loss, grad_norm, the objective's metrics and the monitored figures, each a mean over the steps. The
            monitored figures describe the policy before it learns from the contexts that they are measured on.
        Raises:
            ValueError: the objective does not accept this kind of feedback.
            FloatingPointError: the loss or its gradient is not finite. That step was not taken.
            UserError: the accelerator's memory is full.
        """
        try:
            return self._update(batch, monitor, num_epochs, minibatch_size)
        except torch.OutOfMemoryError as error:
            self._zero_grad()
            raise UserError(
                f"out of memory at step {self.step + 1}, with {batch.num_contexts} contexts a batch: try "
                '`micro_batch_size=1`, `gradient_checkpointing=True`, then `lora_rank=16`, `dtype="bfloat16"`'
            ) from error

    def _update(self, batch: Batch, monitor: bool, num_epochs: int, minibatch_size: int) -> dict[str, float]:
        require_feedback(self.objective, batch.feedback)
        with torch.no_grad():
            target = self.objective.prepare(batch, self._frozen(batch))
        # Made from all of the batch: a reward is above or below the batch's mean.
        sign = signs(batch.feedback) if monitor and self.reference is not None else None
        num_contexts = batch.num_contexts
        size = min(minibatch_size or num_contexts, num_contexts)
        steps: list[dict[str, float]] = []
        for epoch in range(num_epochs):
            for start in range(0, num_contexts, size):
                rows = slice(start, min(start + size, num_contexts))
                part, aim = (batch, target) if size == num_contexts else (batch.select(rows), target.minibatch(rows))
                steps.append(self._step(part, aim, None if sign is None or epoch else sign[rows]))
        names = dict.fromkeys(name for figures in steps for name in figures)
        values = {name: [figures[name] for figures in steps if name in figures] for name in names}
        return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}

    def _step(self, batch: Batch, target: Target, sign: Tensor | None) -> dict[str, float]:
        loss, sums, weights = 0.0, dict[str, float](), dict[str, float]()
        for rows in self._micro_batches(batch):
            share, figures = self._accumulate(batch.select(rows), target.select(rows), select_rows(sign, rows))
            loss += share
            # A micro-batch may have no members for a figure, and then does not count in its mean.
            for name, (value, weight) in figures.items():
                sums[name] = sums.get(name, 0.0) + value * weight
                weights[name] = weights.get(name, 0.0) + weight
        metrics = {"loss": loss} | {name: total / weights[name] for name, total in sums.items()}
        return metrics | self._optimize(loss)

    def _micro_batches(self, batch: Batch) -> Iterator[slice]:
        size, most = self.micro_batch_size or batch.num_contexts, self.micro_batch_tokens or math.inf
        start, held = 0, 0
        for place, tokens in enumerate(count_tokens(batch) if self.micro_batch_tokens else [0] * batch.num_contexts):
            if place > start and (place - start == size or held + tokens > most):
                yield slice(start, place)
                start, held = place, 0
            held += tokens
        yield slice(start, batch.num_contexts)

    def _frozen(self, batch: Batch) -> Likelihood | None:
        """The quantities that `prepare` reads, measured micro-batch by micro-batch without gradient."""
        needs = self.objective.frozen_needs
        if not needs:
            return None
        if needs == {"value"}:
            assert self.critic is not None
            values = [self.critic.value(batch.select(rows)) for rows in self._micro_batches(batch)]
            return Likelihood(log_prob=torch.zeros_like(values[0][:0]), value=torch.cat(values))
        if "mismatched" in needs:
            if batch.mismatched is None:
                raise ValueError(f"{type(self.objective).__name__} needs `Batch.mismatched`, and the batch has none")
            present = batch.mismatched.mask.any(-1)
            batch = Batch(batch.context, batch.mismatched, Labels(present.long(), present))
            needs = (needs - {"mismatched"}) | {"log_prob", "ref_log_prob"}
        parts = [batch.select(rows) for rows in self._micro_batches(batch)]
        pieces = [vars(self.policy.likelihood(part, self.reference, needs).detach()) for part in parts]
        names = [name for name, value in pieces[0].items() if value is not None]
        return Likelihood(**{name: torch.cat([piece[name] for piece in pieces]) for name in names})

    def _accumulate(
        self, batch: Batch, target: Target, sign: Tensor | None
    ) -> tuple[float, dict[str, tuple[float, float]]]:
        """The three beats on one micro-batch: its share of the loss, and name -> (mean, weight) of its figures.

        Gradients add up in `.grad`. With `sign` (which actions are better and worse, `[N, K]`) figures are monitored.
        """
        # 1. measure
        needs = self.objective.needs
        asked = (needs | MONITORED if sign is not None else needs) - {"value"}
        ahead = self._coefficients(batch, target)
        if ahead is not None and isinstance(self.policy, LinearPolicy):
            # The gradient is known: the first beat and the third are one.
            measured = self.policy.likelihood_and_backward(batch, self.reference, asked, ahead)
        else:
            measured = self.policy.likelihood(batch, self.reference, asked)
        value = self.critic.value(batch) if self.critic is not None and "value" in needs else None
        # 2. judge, on leaves that have no graph behind them
        likelihood = replace(measured.detach(), value=None if value is None else value.detach())
        live = {name for name in needs - CONSTANT if getattr(likelihood, name) is not None}
        leaves = {name: getattr(likelihood, name).requires_grad_() for name in sorted(live)}
        loss = self.objective(likelihood, target)
        total = loss.total(target.size)
        duals = self._duals()
        derivatives = torch.autograd.grad(total, [*leaves.values(), *duals], allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, derivatives, strict=False) if grad is not None}
        for dual, grad in zip(duals, derivatives[len(leaves) :], strict=True):
            if grad is not None:
                dual.grad = grad if dual.grad is None else dual.grad + grad
        # 3. pull back
        if value is not None and "value" in grads:
            value.backward(grads.pop("value"))
        if ahead is None:
            self.policy.backward(batch, self.reference, measured, grads)
        # A metric does not tell how many members its mean has: it is weighted by its contexts.
        figures = {name: (float(metric), float(batch.num_contexts)) for name, metric in loss.metrics.items()}
        return total.item(), figures | ({} if sign is None else _monitored_figures(batch, likelihood, sign))

    def _coefficients(self, batch: Batch, target: Target) -> dict[str, Tensor] | None:
        """The loss's gradient with respect to the likelihoods, if it does not depend on them and the policy can use it
        in one pass; else None."""
        if not (self.objective.linear and isinstance(self.policy, LinearPolicy)) or "value" in self.objective.needs:
            return None
        mask, names = batch.action.mask, sorted(self.objective.needs - CONSTANT)
        leaves = {name: torch.zeros(mask.shape, device=mask.device, requires_grad=True) for name in names}
        loss = self.objective(Likelihood(mask=mask, **leaves), target).total(target.size)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}

    def _duals(self) -> list[torch.nn.Parameter]:
        state = self.objective.state()
        return [] if state is None else list(trainable_parameters(state))

    def _optimize(self, loss: float) -> dict[str, float]:
        norms: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            parameters = [part for group in optimizer.param_groups for part in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
            norms["grad_norm" if name == "policy" else f"{name}_grad_norm"] = float(norm)
        for name, value in ({"the loss": loss} | norms).items():
            if not math.isfinite(value):
                self._zero_grad()
                raise FloatingPointError(f"{name} is {value} at step {self.step + 1}: lower the learning rate")
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.base_lrs[name] * self._schedule()
            optimizer.step()
        self._zero_grad()
        self.step += 1
        if self.reference is not None:
            self.reference.after_step(self.policy, self.step)
        return norms

    def _schedule(self) -> float:
        """The factor of the learning rates at this step."""
        warm = min(1.0, (self.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.total_steps is None or self.step < self.warmup_steps:
            return warm
        return max(0.0, (self.total_steps - self.step) / max(1, self.total_steps - self.warmup_steps))

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


def _monitored_figures(batch: Batch, likelihood: Likelihood, sign: Tensor) -> dict[str, tuple[float, float]]:
    """name -> (mean, number of actions): the exact KL, and the drift of better and worse actions from the reference."""
    total = likelihood.detach().total()
    assert total.ref_log_prob is not None and total.ref_kl is not None
    drift = total.log_prob - total.ref_log_prob
    parts = {
        "kl_ref_policy_on_rows": (total.ref_kl, batch.present),
        "accepted_drift": (drift, sign > 0),
        "rejected_drift": (drift, sign < 0),
    }
    known = {name: (values[rows], rows) for name, (values, rows) in parts.items() if bool(rows.any())}
    return {name: (float(values.mean()), float(rows.sum())) for name, (values, rows) in known.items()}


def make_optimizer(
    module: Any, *, kind: str, lr: float, weight_decay: float, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with the DRO paper's decay of 0.8.

    Adafactor's steps are relative to the size of each weight, so that a weight of size 0 would hardly move (torch steps
    it by a thousandth of the rate). Weights that are all zero when this is called (a value head, LoRA's B) therefore
    move as if they had the usual size of a new weight, 1 / sqrt(fan-in).

    Args:
        module: a policy, a critic or an objective's state.
        kind: "adamw" or "adafactor".
        weight_decay: decoupled from the gradient.
        eps: AdamW's; must be small against the gradients, which are small where the loss is.
    Raises:
        ValueError: an unknown kind, or no parameter requires a gradient.
    """
    parameters = list(trainable_parameters(module))
    if not parameters:
        raise ValueError("nothing to train: no parameter requires a gradient")
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, eps=eps)
    if kind == "adafactor":
        return torch.optim.Adafactor(_by_size(parameters), lr=lr, beta2_decay=-0.8, weight_decay=weight_decay)
    raise ValueError(f"`optimizer` is {kind!r}, and must be 'adamw' or 'adafactor'")


def _by_size(parameters: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Adafactor's groups: weights that have a size, and zero weights with the size to assume for them."""
    groups: dict[float | None, list[torch.nn.Parameter]] = {None: []}
    for part in parameters:
        # A bias has a fan-in of 1.
        fan_in = part.shape[-1] if part.dim() > 1 else 1
        groups.setdefault(None if bool(part.detach().any()) else fan_in**-0.5, []).append(part)
    return [{"params": parts} | ({"eps": (None, size)} if size else {}) for size, parts in groups.items() if parts]

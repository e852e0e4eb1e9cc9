"""Value estimates: the V of DRO, PPO and APA, and the Q networks of control.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from valence.objectives.dro import DRO
from valence.protocols import Critic, Policy
from valence.types import Batch


class TokenValue(nn.Module):
    """A value for each step of a language action, V(x, y_<t), or for each prompt, V(x).

    The head starts at zero, so V starts at 0, the mean of standardised rewards.

    Args:
        backbone: the language policy whose hidden states the head reads: a copy of the policy for a separate network,
            which works better in the DRO paper (Fig. 5), or the policy itself.
        shared: whether `backbone` is the policy. The critic then owns the head alone; the gradient still flows into the
            backbone.
        per: "token" gives `[N, K, T]`; "prompt" gives `[N, 1]`, read where the first step is predicted.
    Raises:
        ValueError: `per` is neither.
    """

    def __init__(self, backbone: Any, *, shared: bool = False, per: str = "token") -> None:
        super().__init__()
        if per not in ("token", "prompt"):
            raise ValueError(f"`per` is {per!r}, and must be 'token' or 'prompt'")
        # In a list, a shared backbone is not among this module's own parameters.
        self._backbone: Any = [backbone] if shared else nn.ModuleList([backbone])
        self.per = per
        self.head = nn.Linear(backbone.core.get_output_embeddings().weight.shape[1], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(backbone.device)

    def value(self, batch: Batch) -> Float[Tensor, "..."]:
        """V of the batch's actions, differentiable, zero where an action has no step."""
        hidden, place = self._backbone[0].hidden_states(batch)
        values = self.head(hidden.float())[:, 0]
        values = torch.zeros(place.shape, device=values.device).masked_scatter(place, values)
        if self.per == "token":
            return values
        # The state before the first step is the same for every present action of a context.
        first = batch.action.mask.any(-1).int().argmax(-1, keepdim=True)
        return values[..., 0].gather(-1, first)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: part for name, part in self.named_parameters() if part.requires_grad}


class BatchValue(nn.Module):
    """One learned value for everything: the state-independent baseline of DRO's section 3.2.

    Args:
        device: the policy's device.
    """

    def __init__(self, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros((), device=device))

    def value(self, batch: Batch) -> Float[Tensor, ""]:
        return self.constant

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def token_critic(objective: object, network: Any, policy: Any, *, per: str = "token") -> TokenValue:
    """A value network, before anything has trained; `network.value_network` is "separate" or "head"."""
    if network.value_network == "head":
        return TokenValue(policy, shared=True, per=per)
    backbone = policy.frozen_copy()
    for part, original in zip(backbone.parameters(), policy.parameters(), strict=True):
        part.requires_grad_(original.requires_grad)
    return TokenValue(backbone.train(), per=per)


def dro_critic(objective: DRO, network: Any, policy: Any) -> TokenValue | BatchValue | None:
    """DRO's value network; None where V is solved in closed form."""
    if "value" not in objective.needs:
        return None
    if objective.value == "batch":
        return BatchValue(device=policy.device)
    return token_critic(objective, network, policy, per=objective.value)


def trainable_parameters(module: nn.Module | Policy | Critic) -> Iterator[nn.Parameter]:
    """The parameters that learn, of a policy or a critic."""
    return (part for part in module.parameters() if part.requires_grad)


class QNetwork(nn.Module):
    """Q(x, y) of control actions: several networks side by side, trained on the same targets from different starts.

    The smallest of their values is an underestimate (clipped double Q, Fujimoto et al. 2018): it keeps bootstrapping
    from amplifying its own errors.

    Args:
        observation_size: O.
        action_size: D.
        hidden: units of each hidden layer; the first is layer-normalised, so that observations need no scaling.
        heads: number of networks.
    """

    def __init__(
        self, observation_size: int, action_size: int, hidden: Sequence[int] = (256, 256), *, heads: int = 2
    ) -> None:
        super().__init__()
        sizes = [observation_size + action_size, *hidden, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            self.weights.append(torch.empty(heads, fan_in, fan_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(heads, 1, fan_out).uniform_(-bound, bound))
        self.gain = nn.Parameter(torch.ones(heads, 1, hidden[0]))
        self.shift = nn.Parameter(torch.zeros(heads, 1, hidden[0]))

    def forward(self, observation: Float[Tensor, "N O"], action: Float[Tensor, "N K D"]) -> Float[Tensor, "heads N K"]:
        """The value that each network gives to K actions of each observation, in the reward's unit."""
        first, bias = self.weights[0], self.biases[0]
        size = observation.shape[-1]
        # The observation's part of the first layer is computed once, not for each action.
        observed = torch.baddbmm(bias, observation.expand(len(first), -1, -1), first[:, :size])
        rows = action.flatten(0, 1)
        acted = torch.matmul(rows, first[:, size:])
        hidden = (observed[:, :, None] + acted.unflatten(1, action.shape[:2])).flatten(1, 2)
        normal = nn.functional.layer_norm(hidden, hidden.shape[-1:])
        hidden = torch.addcmul(self.shift, normal, self.gain).relu_()
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        value = torch.baddbmm(self.biases[-1], hidden, self.weights[-1])
        return value[..., 0].unflatten(1, action.shape[:2])

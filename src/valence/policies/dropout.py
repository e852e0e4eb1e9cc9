"""Dropout is off in policies: log pi / pi_ref must be 0 before the first step, and equal calls must agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


def disable_dropout(network: nn.Module) -> None:
    """Set every dropout rate of a network to zero.

    For `dropout_restored`, `network.original_dropout` lists its configs' rates, as (config, name, rate).
    """
    original: list[tuple[object, str, float]] = list(getattr(network, "original_dropout", ()))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Other rates are plain numbers of a module (BART, also for whole layers) or of its config (Falcon).
        for owner in (module, getattr(module, "config", None)):
            for name in [name for name in vars(owner) if "drop" in name] if owner is not None else []:
                rate = getattr(owner, name)
                if isinstance(rate, float) and rate:
                    if owner is not module:
                        original.append((owner, name, rate))
                    setattr(owner, name, 0.0)
    network.original_dropout = original  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


@contextlib.contextmanager
def dropout_restored(network: nn.Module) -> Iterator[None]:
    """Inside, the configs of `network` (or of what peft wraps) hold their own rates, for saving."""
    original = getattr(network, "original_dropout", ())
    try:
        for config, name, rate in original:
            setattr(config, name, rate)
        yield
    finally:
        for config, name, _ in original:
            setattr(config, name, 0.0)

"""The fields of an offline-control run, validated when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from valence.runs.config import check, check_numbers

LOSSES = ("accept", "reject", "clone")


@dataclass(frozen=True, kw_only=True)
class OfflineControlOptions:
    """Which labels, which losses, and how they are learned from."""

    labels: Literal["auto", "given", "advantage"] = "auto"
    """given with the data (infos/label, +1 or -1), the sign of a learned advantage, or auto: given if there are any."""
    use: tuple[Literal["accept", "reject", "clone"], ...] = LOSSES
    """Which losses: on accepted actions, on rejected ones, on all of them."""
    alpha: float | None = None
    """Weight of accepted against rejected, 0 to 1 (0.5; 1 or 0 where only one of them is used)."""
    beta: float | None = None
    """Weight of cloning (1 where nothing is rejected, else the smallest bounded one)."""
    discount: float = 0.98
    """Gamma of the advantage."""
    trace: float = 0.9
    """Lambda of the advantage."""
    expectile: float = 0.7
    """Which expectile of the returns the value is; 0.5 is the mean."""
    steps: int = 4000
    """Updates of the policy."""
    batch_size: int = 512
    """Transitions in a batch."""
    lr: float = 1e-3
    """Learning rate, falling to 0."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer."""
    min_scale: float = 0.3
    """Least standard deviation, in half action ranges: a floor under what a rejection can pay."""
    seed: int = 0
    """Same seed, same bits."""

    def __post_init__(self) -> None:
        check(bool(self.use) and set(self.use) <= set(LOSSES), "use", self.use, f"one or more of {', '.join(LOSSES)}")
        kinds = ("auto", "given", "advantage")
        check(self.labels in kinds, "labels", self.labels, f"one of {', '.join(kinds)}")
        check(bool(self.hidden) and min(self.hidden) >= 1, "hidden", self.hidden, "one size or more, each at least 1")
        check_numbers(self, "discount", "trace", least=0, below=1)
        check_numbers(self, "expectile", above=0, below=1)
        check_numbers(self, "steps", "batch_size", least=1)
        check_numbers(self, "lr", "min_scale", above=0)
        check_numbers(self, "alpha", least=0, most=1)
        check_numbers(self, "beta", "seed", least=0)

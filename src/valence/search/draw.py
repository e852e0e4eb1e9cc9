"""Points drawn from the present policy, and the feedback on them so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from valence.search.judgement import Judgement, judge_labels, judge_pairs, judge_ranks, judge_values, merge
from valence.search.space import Points

JUDGES = {"values": judge_values, "ranks": judge_ranks, "labels": judge_labels, "pairs": judge_pairs}
"""What turns each kind of feedback into a `Judgement`."""


@dataclass
class Draw:
    """One draw.

    Args:
        pending: x as bytes -> whitened sample, `[d]`, of points without feedback.
        z: whitened samples with feedback, one `[n, d]` per call of `tell`.
        feedback: `(kind, feedback)` of each call of `tell`, as it was given.
    """

    pending: dict[bytes, np.ndarray] = field(default_factory=dict)
    z: list[np.ndarray] = field(default_factory=list)
    feedback: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def num_judged(self) -> int:
        return sum(len(samples) for samples in self.z)

    def samples(self) -> Points:
        """Whitened samples: those with feedback, then the pending ones."""
        return np.concatenate([*self.z, *(sample[None] for sample in self.pending.values())])

    def values(self) -> list[float]:
        """All values in the feedback, of any call of `tell`."""
        return [float(value) for kind, feedback in self.feedback if kind == "values" for value in feedback]

    def judgement(self) -> Judgement:
        """The judgement of all samples, in the order of `samples`; pending ones are unlabelled.

        Values are compared across calls of `tell`, if all feedback is values. Ranks and pairs are compared within
        their own call only.
        """
        if all(kind == "values" for kind, _ in self.feedback):
            parts = [judge_values(self.values(), self.num_judged)]
        else:
            parts = [JUDGES[kind](given, len(z)) for (kind, given), z in zip(self.feedback, self.z, strict=True)]
        return merge([*parts, judge_labels([0] * len(self.pending), len(self.pending))])

    def state_dict(self) -> dict[str, Any]:
        """As JSON values that read back to the same bits."""
        pending = [[np.frombuffer(x).tolist(), z.tolist()] for x, z in self.pending.items()]
        feedback = [[kind, _json_values(kind, feedback)] for kind, feedback in self.feedback]
        return {"pending": pending, "z": [z.tolist() for z in self.z], "feedback": feedback}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Draw:
        pending = {np.array(x, dtype=np.float64).tobytes(): np.array(z) for x, z in state["pending"]}
        return cls(pending, [np.array(z) for z in state["z"]], [tuple(part) for part in state["feedback"]])


def _json_values(kind: str, feedback: Any) -> list[Any]:
    if kind == "pairs":
        return [[int(better), int(worse)] for better, worse in feedback]
    if kind == "labels":
        return [None if label is None else int(label) for label in feedback]
    return [float(number) for number in feedback]


def one_kind(**feedback: Any) -> tuple[str, list[Any]]:
    """(the kind of feedback that is not None, the feedback as a list).

    Raises:
        ValueError: there is none, or there are several.
    """
    given = {kind: values for kind, values in feedback.items() if values is not None}
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(feedback)}; given: {', '.join(given) or 'none'}")
    ((kind, values),) = given.items()
    return kind, list(values) if isinstance(values, Iterable) else [values]


def as_points(x: Any, dim: int) -> Points:
    """Points as a float64 array `[n, d]`.

    Raises:
        ValueError: they are not finite numbers of that shape.
    """
    refusal = ValueError(f"points must be finite numbers of shape [n, {dim}]")
    try:
        points = np.array(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise refusal from error
    if points.ndim != 2 or points.shape[1] != dim or not len(points) or not np.isfinite(points).all():
        raise refusal
    return points

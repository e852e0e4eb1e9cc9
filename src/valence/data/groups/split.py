"""Held-out groups: by the rows' own marks, else by a hash that no shuffling or new data moves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from valence.data.groups.group import Group
from valence.data.records import Record

HELDOUT = frozenset(("heldout", "held_out", "held-out", "test", "validation", "valid", "val", "eval", "dev"))
FEW_PROMPTS = 20


def split_groups(groups: Sequence[Group], *, fraction: float, seed: int = 0) -> tuple[list[Group], list[Group]]:
    """Train and held-out groups.

    The rows' own marks are kept where any of them says held out (or test, validation, eval). Otherwise the SHA-256
    of a prompt decides, so that a prompt is never on both sides and more data moves none across; of prompt and
    completions where there are fewer than 20 prompts. Given two or more to choose from and a fraction above 0,
    neither side is left empty.

    Args:
        groups: the contexts.
        fraction: about what share to hold out, in [0, 1).
        seed: another seed, another choice.
    Returns:
        (train, heldout), each in the order of `groups`.
    Raises:
        ValueError: fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is {fraction}: it must be at least 0 and less than 1")
    out = [is_heldout(group) for group in groups]
    if not any(out):
        out = _chosen(groups, fraction, seed)
    train = [group for group, held in zip(groups, out, strict=True) if not held]
    return train, [group for group, held in zip(groups, out, strict=True) if held]


def is_heldout(group: Group | Record) -> bool:
    """Whether its file marks it as held out."""
    return (group.split or "").strip().lower() in HELDOUT


def _chosen(groups: Sequence[Group], fraction: float, seed: int) -> list[bool]:
    """Which groups to hold out, by where the hash of what must not straddle falls in [0, 1)."""
    few = len({group.prompt for group in groups}) < FEW_PROMPTS
    places = [_place((group.prompt, group.completions if few else ()), seed) for group in groups]
    ordered = sorted(set(places))
    if not fraction or len(ordered) < 2:
        return [False] * len(groups)
    bound = min(max(fraction, ordered[0]), ordered[-2])
    return [place <= bound for place in places]


def _place(key: object, seed: int) -> float:
    digest = hashlib.sha256(json.dumps([seed, key]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

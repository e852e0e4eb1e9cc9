"""Held-out groups: by the marks of the rows, else by a hash that does not depend on order or on other rows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence

import torch

from valence.data.groups.group import Group
from valence.data.records import Record, Text
from valence.data.stored import Lazy, picked

HELDOUT = frozenset(("heldout", "held_out", "held-out", "test", "validation", "valid", "val", "eval", "dev"))
FEW_PROMPTS = 20


def split_groups(groups: Sequence[Group], *, fraction: float, seed: int = 0) -> tuple[Lazy[Group], Lazy[Group]]:
    """Train and held-out groups, each in their order. `fraction` is about the share to hold out.

    If any row is marked as held out (or test, validation, eval), the marks decide. Otherwise the SHA-256 of the prompt
    decides, so that a prompt is on one side only and stays there when the data set grows. With fewer than 20 prompts,
    prompt and completions decide. With two or more of them and a fraction above 0, no side is empty.

    Raises:
        ValueError: fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is {fraction}, and must be at least 0 and less than 1")
    out = [is_heldout(group) for group in groups]
    if not any(out):
        out = _chosen(groups, fraction, seed)
    train = picked(groups, (place for place, held in enumerate(out) if not held))
    return train, picked(groups, (place for place, held in enumerate(out) if held))


def split_records(records: Sequence[Record], *, fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(rows to train on, held-out rows): those marked as held out, else a share of the prompts; where all rows have
    one prompt, a share of the rows."""
    if any(map(is_heldout, records)):
        return [row for row in records if not is_heldout(row)], [row for row in records if is_heldout(row)]
    names: list[Text | int] = [row.prompt for row in records]
    if len(set(names)) == 1:
        names = list(range(len(records)))
    different = list(dict.fromkeys(names))
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed)).tolist()
    away = {different[place] for place in order[: int(len(different) * fraction)]}
    pairs = list(zip(names, records, strict=True))
    return [row for name, row in pairs if name not in away], [row for name, row in pairs if name in away]


def is_heldout(group: Group | Record) -> bool:
    """Whether its row is marked as held out."""
    return (group.split or "").strip().lower() in HELDOUT


def _chosen(groups: Sequence[Group], fraction: float, seed: int) -> list[bool]:
    """Which groups to hold out: those whose hash, a number in [0, 1), is at most `fraction`."""
    if not fraction:
        return [False] * len(groups)
    few = _are_few(groups)
    places = array("d", (_place((group.prompt, group.completions if few else ()), seed) for group in groups))
    last = max(places, default=0.0)
    second = max((place for place in places if place < last), default=None)
    if second is None:
        return [False] * len(groups)
    bound = min(max(fraction, min(places)), second)
    return [place <= bound for place in places]


def _are_few(groups: Sequence[Group]) -> bool:
    """Whether there are fewer than `FEW_PROMPTS` prompts."""
    prompts: set[Text] = set()
    for group in groups:
        prompts.add(group.prompt)
        if len(prompts) == FEW_PROMPTS:
            return False
    return True


def _place(key: object, seed: int) -> float:
    digest = hashlib.sha256(json.dumps([seed, key]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

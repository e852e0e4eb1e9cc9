"""An image reward by its name on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from valence.errors import UserError
from valence.rewards.ensemble import Judge
from valence.rewards.functions import RewardFunction
from valence.rewards.images import DEFAULT_REWARD, ImageClassifier, ImageReward, WeightedSum, ready_image_rewards
from valence.rewards.judge import PairFunction, SelfPlay
from valence.rewards.loading import load_function


def load_image_reward(
    name: str, *, device: str = "cpu", timeout: float = 60.0, option: str = "--reward"
) -> RewardFunction | SelfPlay:
    """An image reward by its name on the command line, called as `judge(prompts, images, metadata=rows)`.

    Args:
        name: jpeg-small, jpeg-large, digit, digit-judge; classifier:FOLDER or aesthetic:FOLDER; module:function or
            file.py:function of (images, prompts, metadata) that gives a number for each; sum:W*A,W*B of any of these;
            pairwise: and a function of (prompts, first, second) that gives P(first is better).
        device: where a model runs.
        timeout: seconds that a call of a user's function may take.
        option: what the user calls it, for messages.
    Raises:
        UserError: there is none of that name.
    """
    kind, _, rest = name.partition(":")
    if kind == "sum":
        members = [
            (weight, load_image_reward(member, device=device, timeout=timeout, option=option))
            for weight, member in parse_sum(name, option)
        ]
        return RewardFunction(WeightedSum(members), name=name, timeout=math.inf, what="images")
    if kind == "pairwise":
        pairs = _function(rest, option)
        return SelfPlay(PairFunction(_of_copies(pairs), name=name, timeout=timeout, what="pairs of images"), name=name)
    if kind in ("classifier", "aesthetic") and not rest:
        raise UserError(f"{option} {name} needs a folder: {kind}:FOLDER")
    own = _own(name, kind, rest, device)
    if own is not None:
        # Not a stranger's code: the first call fits or loads a classifier, and a slow machine is waited for.
        return image_reward(own, name=name, timeout=math.inf)
    return image_reward(_function(name, option), name=name, timeout=timeout)


def image_reward(function: Any, *, name: str, timeout: float) -> RewardFunction:
    """A function of (images, prompts, metadata) as a judge that cannot break a run; it is given copies."""
    return RewardFunction(_as_judge(function), name=name, timeout=timeout, what="images")


def parse_sum(name: str, option: str = "--reward") -> list[tuple[float, str]]:
    """sum:W*A,B -> [(W, A), (1, B)].

    Raises:
        UserError: no such list, or a member that gives an image no score of its own.
    """
    found = []
    for part in name.removeprefix("sum:").split(","):
        left, star, right = part.partition("*")
        member = (right if star else left).strip()
        try:
            weight = float(left) if star else 1.0
        except ValueError:
            weight = math.nan
        if not member or not math.isfinite(weight):
            raise UserError(f"{option} {name}: {part!r} must be NAME or WEIGHT*NAME, as in {DEFAULT_REWARD}")
        if member.startswith(("pairwise:", "sum:")):
            raise UserError(f"{option} {name}: {part!r} cannot be part of a sum, which adds scores of single images")
        found.append((weight, member))
    return found


def _own(name: str, kind: str, folder: str, device: str) -> ImageReward | None:
    ready = ready_image_rewards()
    if name in ready:
        return ready[name]
    if kind == "classifier":
        return ImageClassifier(folder, device=device)
    if kind == "aesthetic":
        from valence.rewards.aesthetic import AestheticPredictor

        return AestheticPredictor(folder, device=device)
    return None


def _function(name: str, option: str) -> Any:
    others = f"none of {', '.join(ready_image_rewards())}, and not sum:W*A,W*B, classifier:FOLDER, aesthetic:FOLDER"
    return load_function(name, option=option, others=others)


def _as_judge(reward: Any) -> Judge:
    """A function of (images, prompts, metadata) with the arguments of a judge of completions."""

    def judge(prompts: Sequence[Any], completions: Sequence[Any], metadata: Sequence[Any] | None = None) -> Any:
        rows = [{}] * len(completions) if metadata is None else metadata
        return reward(_copies(completions), list(prompts), [dict(row or {}) for row in rows])

    return judge


def _of_copies(pairs: Any) -> Any:
    def compare(prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Any:
        return pairs(list(prompts), _copies(first), _copies(second))

    return compare


def _copies(images: Sequence[Any]) -> list[Any]:
    """RGB copies: what a reward does to its images stays with it."""
    return [image.convert("RGB") for image in images]

"""A reward of images by its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from valence.errors import UserError
from valence.rewards.ensemble import Judge, RewardFn, ensemble, weighted_sum
from valence.rewards.functions import RewardFunction, name_of
from valence.rewards.image_models import AestheticPredictor, ImageClassifier
from valence.rewards.images import DEFAULT_REWARD, READY_IMAGE_REWARDS, ImageReward
from valence.rewards.judge import PairFunction, SelfPlay
from valence.rewards.loading import about, load_function

MODELS = {"classifier": ImageClassifier, "aesthetic": AestheticPredictor}
IMAGE_REWARDS = f"none of {', '.join(READY_IMAGE_REWARDS)}, and not sum:W*A,W*B, classifier:FOLDER, aesthetic:FOLDER"


def load_image_reward(name: str, *, device: str = "cpu", timeout: float = 60.0, argument: str = "reward") -> Judge:
    """An image reward by its name. It is called as `judge(prompts, images, metadata=rows)`.

    Args:
        name: jpeg-small, jpeg-large, digit, digit-judge; classifier:FOLDER or aesthetic:FOLDER; module:function or
            file.py:function of (images, prompts, metadata) that gives a number for each; sum:W*A,W*B of any of these;
            pairwise: and a function of (prompts, first, second) that gives P(first is better).
        device: where a model runs.
        timeout: seconds that a call of a user's function may take.
        argument: the argument that has this name, for messages.
    Returns:
        A `SelfPlay` for a pairwise function, else a `RewardFunction`.
    Raises:
        UserError: there is no such reward.
    """

    def load(name: str) -> Judge:
        kind, _, rest = name.partition(":")
        if kind == "sum":
            weights, members = zip(*parse_sum(name), strict=True)
            together = ensemble([load(member) for member in members], weighted_sum(weights))
            return RewardFunction(together, name=name, timeout=math.inf, what="images")
        if kind == "pairwise":
            pairs = _of_copies(load_function(rest, IMAGE_REWARDS))
            return SelfPlay(PairFunction(pairs, name=name, timeout=timeout, what="pairs of images"), name=name)
        if kind in MODELS and not rest:
            raise UserError(f"{name} needs a folder: {kind}:FOLDER")
        own = MODELS[kind](rest, device=device) if kind in MODELS else READY_IMAGE_REWARDS.get(name)
        if own is None:
            return image_judge(load_function(name, IMAGE_REWARDS), name=name, timeout=timeout)
        # The first call fits or loads a classifier, so it has no timeout.
        return image_judge(own, name=name, timeout=math.inf)

    with about(argument):
        return load(name)


def image_judge(reward: Judge | ImageReward, *, name: str = "", timeout: float = 60.0) -> Judge:
    """A judge as it is; a function of (images, prompts, metadata) as a `RewardFunction`, which gives it copies."""
    if isinstance(reward, Judge):
        return reward
    return RewardFunction(_as_judge(reward), name=name or name_of(reward), timeout=timeout, what="images")


def parse_sum(name: str) -> list[tuple[float, str]]:
    """sum:W*A,B -> [(W, A), (1, B)].

    Raises:
        UserError: no such list, or a member that gives an image no score of its own.
    """
    members = []
    for part in name.removeprefix("sum:").split(","):
        left, star, right = part.partition("*")
        member = (right if star else left).strip()
        try:
            weight = float(left) if star else 1.0
        except ValueError:
            weight = math.nan
        if not member or not math.isfinite(weight):
            raise UserError(f"{name}: {part!r} must be NAME or WEIGHT*NAME, as in {DEFAULT_REWARD}")
        if member.startswith(("pairwise:", "sum:")):
            raise UserError(f"{name}: {part!r} cannot be part of a sum, which adds scores of single images")
        members.append((weight, member))
    return members


def _as_judge(reward: ImageReward) -> RewardFn:
    """A function of (images, prompts, metadata) with the arguments of a judge of completions."""

    def judge(prompts: Sequence[str], completions: Sequence[Any], metadata: Sequence[Any] | None = None) -> Any:
        rows = metadata or [{}] * len(completions)
        return reward(_copies(completions), list(prompts), [dict(row or {}) for row in rows])

    return judge


def _of_copies(pairs: Any) -> Any:
    def compare(prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Any:
        return pairs(list(prompts), _copies(first), _copies(second))

    return compare


def _copies(images: Sequence[Any]) -> list[Any]:
    """RGB copies, so that a reward may change its images."""
    return [image.convert("RGB") for image in images]

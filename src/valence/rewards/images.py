"""The image rewards that come with Valence: `(images, prompts, metadata) -> a number for each image, or None`.

`images` are PIL images in RGB, `prompts` their texts, `metadata` the other columns of each prompt's row as a dict.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from valence.rewards.digits import Images, digit, digit_judge

ImageReward = Callable[[Images, Sequence[str], Sequence[Any]], Sequence[float | None]]
DEFAULT_REWARD = "sum:digit,10*jpeg-small"
"""Small files that still show the digit of the prompt. A flat 32 x 32 image is about 0.4 kB smaller than a sample of
the small model, 4 units at this weight, and loses about 12 nats of `digit`: a vanished digit does not pay. It would pay
at the weights, several times as large, that give both parts the same standard deviation over that model's samples."""
JUDGE = "digit-judge"
"""The independent judge of the default reward (see `valence.rewards.digits`)."""
QUALITY = 95


def jpeg_kilobytes(image: Any) -> float:
    """Size of an image as JPEG of quality 95, in 1000 bytes.

    It is exact for one version of Pillow's JPEG library. About 0.6 of it is a header that every image has: much of the
    size of a 32 x 32 image, and little of a 512 x 512 image's.
    """
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return file.tell() / 1000


def jpeg_large(images: Images, prompts: Sequence[str], metadata: Sequence[object]) -> list[float | None]:
    """Incompressibility: the size as JPEG in 1000 bytes.

    Source: Black et al. 2023, "Training diffusion models with reinforcement learning", section 5.1; the REBEL paper
    uses its opposite in section 5.3.
    """
    return [jpeg_kilobytes(image) for image in images]


def jpeg_small(images: Images, prompts: Sequence[str], metadata: Sequence[object]) -> list[float | None]:
    """Compressibility: minus the size as JPEG in 1000 bytes. Used alone, it is highest for images of one colour."""
    return [-jpeg_kilobytes(image) for image in images]


READY_IMAGE_REWARDS: dict[str, ImageReward] = {
    "jpeg-small": jpeg_small, "jpeg-large": jpeg_large, "digit": digit, JUDGE: digit_judge,
}  # fmt: skip
"""The image rewards that come with Valence, by name."""

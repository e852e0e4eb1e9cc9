"""Image rewards that are ready: `(images, prompts, metadata) -> list of numbers, or None`.

`images` are PIL images in RGB, `prompts` their texts, `metadata` the other columns of each prompt's row as a dict.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from valence.errors import UserError
from valence.rewards.digits import digit, digit_judge
from valence.rewards.ensemble import Judge

ImageReward = Callable[[Sequence[Any], Sequence[str], Sequence[Any]], Sequence[float | None]]
DEFAULT_REWARD = "sum:digit,10*jpeg-small"
"""Small files that still show the digit asked for. A flat 32 x 32 image saves about 0.4 kB of a sample of the small
model, 4 units at this weight, and loses about 12 nats of `digit`: making the digit vanish does not pay. Weights that
give both parts the same standard deviation over that model's samples are several times as large, and there it does."""
JUDGE = "digit-judge"
"""Watches the default reward: `valence.rewards.digits` says what sets it apart."""
QUALITY = 95


def jpeg_kilobytes(image: Any) -> float:
    """Size of an image as JPEG of quality 95, in 1000 bytes.

    Exact, and the same whenever one version of Pillow's JPEG library writes it. About 0.6 of it is a header that every
    image has: much of a 32 x 32 image's size, and little of a 512 x 512 one's.
    """
    kept = io.BytesIO()
    image.save(kept, format="JPEG", quality=QUALITY)
    return kept.tell() / 1000


def jpeg_large(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
    """Incompressibility: the size as JPEG in 1000 bytes. Source: Black et al. 2023, "Training diffusion models with
    reinforcement learning", section 5.1; section 5.3 of the REBEL paper uses its opposite."""
    return [jpeg_kilobytes(image) for image in images]


def jpeg_small(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
    """Compressibility: minus the size as JPEG in 1000 bytes. Alone it is raised most by images that show nothing."""
    return [-jpeg_kilobytes(image) for image in images]


def ready_image_rewards() -> dict[str, ImageReward]:
    """Name -> function."""
    return {"jpeg-small": jpeg_small, "jpeg-large": jpeg_large, "digit": digit, "digit-judge": digit_judge}


class WeightedSum:
    """Several rewards as one: each times its weight, added up.

    Args:
        members: (weight, judge).
    """

    def __init__(self, members: Sequence[tuple[float, Judge]]) -> None:
        self.members = tuple(members)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """None where any of them has no number: the others alone would be another reward."""
        given = [judge(prompts, completions, **columns) for _, judge in self.members]
        weights = [weight for weight, _ in self.members]
        found: list[float | None] = []
        for row in zip(*given, strict=True):
            parts = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
            found.append(sum(parts) if len(parts) == len(row) else None)
        return found


class ImageClassifier:
    """log P(the label that a prompt names), nats, by an `AutoModelForImageClassification`.

    The label is the row's own `label` (a name or an index) where it has one, and otherwise the longest of the model's
    label names that stands in the prompt as words, case apart. A label of several names with commas between, as
    ImageNet's are, goes by each of them; labels that share a name count together.

    Args:
        path: a folder with the model and its image processor.
        device: where it runs.
        batch_size: images at a time.
    Raises:
        UserError: no such model there, or its labels have no names.
    """

    def __init__(self, path: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        self.model, self.processor = load_vision("AutoModelForImageClassification", path, device=device)
        self.batch_size = batch_size
        self.labels: dict[str, set[int]] = {}
        for index, label in self.model.config.id2label.items():
            if str(label) == f"LABEL_{index}":
                raise UserError(f"{path} has no names for its labels: write id2label into its config.json")
            for name in {_plain(label), *map(_plain, str(label).split(","))} - {""}:
                self.labels.setdefault(name, set()).add(int(index))
        longest = sorted(self.labels, key=len, reverse=True)
        # Within a lookahead, so that a name that begins inside another one is found too.
        self._names = re.compile(rf"(?<!\w)(?=({'|'.join(map(re.escape, longest))})(?!\w))")

    def __call__(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
        import torch

        wanted = [self.label(prompt, row) for prompt, row in zip(prompts, metadata, strict=True)]
        found: list[float | None] = []
        for start in range(0, len(images), self.batch_size):
            pixels = pixel_values(self.processor, images[start : start + self.batch_size], self.model.device)
            with torch.no_grad():
                log_prob = self.model(pixel_values=pixels).logits.float().log_softmax(1)
            for row, labels in zip(log_prob, wanted[start : start + self.batch_size], strict=True):
                found.append(row[sorted(labels)].logsumexp(0).item() if labels else None)
        return found

    def label(self, prompt: str, row: Any) -> set[int]:
        """The labels that a row asks for; empty where there are none."""
        given = row.get("label") if isinstance(row, dict) else None
        if isinstance(given, int):
            return {given} if given in self.model.config.id2label else set()
        if given is not None:
            return self.labels.get(_plain(given), set())
        named = self._names.findall(_plain(prompt))
        return self.labels[max(named, key=len)] if named else set()


def _plain(text: Any) -> str:
    return " ".join(str(text).replace("_", " ").casefold().split())


def load_vision(kind: str, path: str, *, device: str) -> tuple[Any, Any]:
    """(a frozen vision model of transformers, its image processor).

    Args:
        kind: the class in transformers, such as AutoModelForImageClassification.
    Raises:
        UserError: there is none in that folder, or a part of it is missing.
    """
    if not Path(path).is_dir():
        raise UserError(f"{path} is no folder: give one with a vision model of transformers")
    import transformers

    logging = transformers.utils.logging
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # a whole CLIP's text half is a table of weights that were not expected
    try:
        model, told = getattr(transformers, kind).from_pretrained(path, use_safetensors=True, output_loading_info=True)
        # The same images with and without torchvision.
        processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be loaded as a vision model: {' '.join(str(error).split())[:200]}") from error
    finally:
        logging.set_verbosity(before)
    if missing := sorted(told["missing_keys"]):
        # They would be random numbers, and judge by them.
        raise UserError(f"{path} lacks {len(missing)} of the weights of {type(model).__name__}, such as {missing[0]}")
    return model.requires_grad_(False).eval().to(device), processor


def pixel_values(processor: Any, images: Sequence[Any], device: Any) -> Any:
    """Images as a vision model takes them, [M,3,height,width]."""
    return processor(images=list(images), return_tensors="pt")["pixel_values"].to(device)

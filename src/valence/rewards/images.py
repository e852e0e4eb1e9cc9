"""The image rewards that come with Valence: `(images, prompts, metadata) -> a number for each image, or None`.

`images` are PIL images in RGB, `prompts` their texts, `metadata` the other columns of each prompt's row as a dict.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from valence.errors import UserError, one_line
from valence.rewards.digits import digit, digit_judge

ImageReward = Callable[[Sequence[Any], Sequence[str], Sequence[Any]], Sequence[float | None]]
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


def jpeg_large(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
    """Incompressibility: the size as JPEG in 1000 bytes.

    Source: Black et al. 2023, "Training diffusion models with reinforcement learning", section 5.1; the REBEL paper
    uses its opposite in section 5.3.
    """
    return [jpeg_kilobytes(image) for image in images]


def jpeg_small(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
    """Compressibility: minus the size as JPEG in 1000 bytes. Used alone, it is highest for images of one colour."""
    return [-jpeg_kilobytes(image) for image in images]


def ready_image_rewards() -> dict[str, ImageReward]:
    """The image rewards that come with Valence, by name."""
    return {"jpeg-small": jpeg_small, "jpeg-large": jpeg_large, "digit": digit, "digit-judge": digit_judge}


class ImageClassifier:
    """log P(the label that a prompt names), nats, by an `AutoModelForImageClassification`.

    The label is the row's own `label` (a name or an index) if it has one. Otherwise it is the longest of the model's
    label names whose words stand in the prompt; case does not count. A label of several names with commas between
    them, as in ImageNet, has each of these names. The probabilities of labels that share a name are added.

    Args:
        path: a folder with the model and its image processor.
        device: where it runs.
        batch_size: images at a time.
    Raises:
        UserError: the folder has no such model, or its labels have no names.
    """

    def __init__(self, path: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        self.model, self.processor = load_vision("AutoModelForImageClassification", path, device=device)
        self.batch_size = batch_size
        self.labels: dict[str, set[int]] = {}
        for index, label in self.model.config.id2label.items():
            if str(label) == f"LABEL_{index}":
                raise UserError(f"{path} has no names for its labels: add id2label to its config.json")
            for name in {_plain(label), *map(_plain, str(label).split(","))} - {""}:
                self.labels.setdefault(name, set()).add(int(index))
        longest = sorted(self.labels, key=len, reverse=True)
        # The lookahead also finds a name that begins inside another one.
        self._names = re.compile(rf"(?<!\w)(?=({'|'.join(map(re.escape, longest))})(?!\w))")

    def __call__(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
        import torch

        wanted = [self.label(prompt, row) for prompt, row in zip(prompts, metadata, strict=True)]
        scores: list[float | None] = []
        for start in range(0, len(images), self.batch_size):
            pixels = pixel_values(self.processor, images[start : start + self.batch_size], self.model.device)
            with torch.no_grad():
                log_prob = self.model(pixel_values=pixels).logits.float().log_softmax(1)
            for row, labels in zip(log_prob, wanted[start : start + self.batch_size], strict=True):
                scores.append(row[sorted(labels)].logsumexp(0).item() if labels else None)
        return scores

    def label(self, prompt: str, row: Any) -> set[int]:
        """The labels that a row asks for; empty if it asks for none of the model's."""
        own = row.get("label") if isinstance(row, dict) else None
        if isinstance(own, int):
            return {own} if own in self.model.config.id2label else set()
        if own is not None:
            return self.labels.get(_plain(own), set())
        named = self._names.findall(_plain(prompt))
        return self.labels[max(named, key=len)] if named else set()


def _plain(text: Any) -> str:
    return " ".join(str(text).replace("_", " ").casefold().split())


def load_vision(kind: str, path: str, *, device: str) -> tuple[Any, Any]:
    """(a frozen vision model of transformers, its image processor).

    Args:
        kind: the class in transformers, such as AutoModelForImageClassification.
    Raises:
        UserError: the folder has no such model, or the model lacks some of its weights.
    """
    if not Path(path).is_dir():
        raise UserError(f"{path} is no folder: give one that holds a vision model of transformers")
    import transformers

    logging = transformers.utils.logging
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the text half of a full CLIP would be listed as unexpected weights
    try:
        model, info = getattr(transformers, kind).from_pretrained(path, use_safetensors=True, output_loading_info=True)
        # This backend gives the same pixels with and without torchvision.
        processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be loaded as a vision model: {one_line(error)}") from error
    finally:
        logging.set_verbosity(before)
    if missing := sorted(info["missing_keys"]):
        # transformers would fill them with random numbers.
        raise UserError(f"{path} lacks {len(missing)} of the weights of {type(model).__name__}, such as {missing[0]}")
    return model.requires_grad_(False).eval().to(device), processor


def pixel_values(processor: Any, images: Sequence[Any], device: Any) -> Any:
    """The input of a vision model for images, [M,3,height,width]."""
    return processor(images=list(images), return_tensors="pt")["pixel_values"].to(device)

"""LAION's aesthetic predictor: how much people like an image, from its CLIP embedding and a small head.

A folder holds a CLIP vision model with its image processor, and the head as `head.safetensors`. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valence.errors import UserError
from valence.rewards.images import load_vision, pixel_values

HEAD = "head.safetensors"
NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", HEAD)


class AestheticPredictor:
    """A score of each image, about 1 to 10 with LAION's own head; higher is better.

    The head is one linear layer or, as in the published predictor, several without activations between them: the
    two-dimensional tensors of the file in the order of the numbers in their names, each with the bias of its name if
    there is one.
    Source: LAION's "improved aesthetic predictor" (Schuhmann 2022).

    Args:
        path: the folder.
        device: where it runs.
        batch_size: images at a time.
    Raises:
        UserError: a file is missing, or the head does not fit.
    """

    def __init__(self, path: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        if missing := [name for name in NEEDED if not (Path(path) / name).is_file()]:
            raise UserError(
                f"aesthetic:{path} lacks {', '.join(missing)}: copy openai/clip-vit-large-patch14 from the hub into "
                "the folder, and the weights sac+logos+ava1-l14-linearMSE.pth of "
                f"github.com/christophschuhmann/improved-aesthetic-predictor, saved with safetensors as {HEAD}"
            )
        self.model, self.processor = load_vision("CLIPVisionModelWithProjection", path, device=device)
        self.layers = _layers(Path(path) / HEAD, self.model.config.projection_dim, device)
        self.batch_size = batch_size

    def __call__(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
        import torch
        from torch.nn.functional import linear, normalize

        scores: list[float | None] = []
        for start in range(0, len(images), self.batch_size):
            pixels = pixel_values(self.processor, images[start : start + self.batch_size], self.model.device)
            with torch.no_grad():
                score = normalize(self.model(pixel_values=pixels).image_embeds.float(), dim=1)
                for weight, bias in self.layers:
                    score = linear(score, weight, bias)
            scores += score[:, 0].tolist()
        return scores


def _layers(path: Path, size: int, device: str) -> list[tuple[Any, Any]]:
    """(weight, bias or None) of each linear layer, from embeddings of `size` numbers to one score."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path, device=device)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    names = sorted((name for name in tensors if tensors[name].dim() == 2), key=_numbers)
    layers: list[tuple[Any, Any]] = []
    for name in names:
        weight, bias = tensors[name].float(), tensors.get(name.removesuffix("weight") + "bias")
        if weight.shape[1] != size or (bias is not None and bias.shape != weight.shape[:1]):
            raise UserError(f"{path}: {name} has the shape {list(weight.shape)}, and must take {size} numbers")
        layers.append((weight, None if bias is None else bias.float()))
        size = weight.shape[0]
    if not layers or size != 1:
        raise UserError(f"{path} gives {size} numbers for an image where an aesthetic head gives one")
    return layers


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]

"""Image rewards by a vision model in a folder: a classifier, and LAION's aesthetic predictor.

Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from valence.errors import UserError
from valence.rewards.digits import Images
from valence.rewards.reward_model import loading

TOGETHER = 32
"""Images that go through a model at once."""
HEAD = "head.safetensors"
NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", HEAD)


class VisionModel:
    """A frozen vision model of transformers with its image processor.

    Args:
        kind: the class in transformers, such as AutoModelForImageClassification.
        path: the folder.
        device: where it runs.
    Raises:
        UserError: the folder has no such model, or the model lacks some of its weights.
    """

    def __init__(self, kind: str, path: str, *, device: str) -> None:
        if not Path(path).is_dir():
            raise UserError(f"{path} is no folder: give one that holds a vision model of transformers")
        import transformers

        logging = transformers.utils.logging
        logging.disable_progress_bar()
        before = logging.get_verbosity()
        logging.set_verbosity_error()  # the text half of a full CLIP would be listed as unexpected weights
        try:
            with loading(f"{path} cannot be loaded as a vision model"):
                make = getattr(transformers, kind).from_pretrained
                model, info = make(path, use_safetensors=True, output_loading_info=True)
                # This backend gives the same pixels with and without torchvision.
                self.processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
        finally:
            logging.set_verbosity(before)
        if missing := sorted(info["missing_keys"]):
            # transformers would fill them with random numbers.
            kind = type(model).__name__
            raise UserError(f"{path} lacks {len(missing)} of the weights of {kind}, such as {missing[0]}")
        self.model = model.requires_grad_(False).eval().to(device)

    def outputs(self, images: Images) -> Iterator[Any]:
        """The model's outputs, `TOGETHER` images at a time."""
        for start in range(0, len(images), TOGETHER):
            read = self.processor(images=list(images[start : start + TOGETHER]), return_tensors="pt")
            with torch.no_grad():
                output = self.model(pixel_values=read["pixel_values"].to(self.model.device))
            yield output


class ImageClassifier(VisionModel):
    """log P(the label that a prompt names), nats, by an `AutoModelForImageClassification`.

    The label is the row's own `label` (a name or an index) if it has one. Otherwise it is the longest of the model's
    label names whose words stand in the prompt; case does not count. A label of several names with commas between
    them, as in ImageNet, has each of these names. The probabilities of labels that share a name are added.

    Raises:
        UserError: the folder has no such model, or its labels have no names.
    """

    def __init__(self, path: str, *, device: str = "cpu") -> None:
        super().__init__("AutoModelForImageClassification", path, device=device)
        self.labels: dict[str, set[int]] = {}
        for index, label in self.model.config.id2label.items():
            if str(label) == f"LABEL_{index}":
                raise UserError(f"{path} has no names for its labels: add id2label to its config.json")
            for name in {_plain(label), *map(_plain, str(label).split(","))} - {""}:
                self.labels.setdefault(name, set()).add(int(index))
        longest = sorted(self.labels, key=len, reverse=True)
        # The lookahead also finds a name that begins inside another one.
        self._names = re.compile(rf"(?<!\w)(?=({'|'.join(map(re.escape, longest))})(?!\w))")

    def __call__(
        self, images: Images, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]
    ) -> list[float | None]:
        wanted = [sorted(self.label(prompt, row)) for prompt, row in zip(prompts, metadata, strict=True)]
        rows = (row for output in self.outputs(images) for row in output.logits.float().log_softmax(1))
        return [row[labels].logsumexp(0).item() if labels else None for row, labels in zip(rows, wanted, strict=True)]

    def label(self, prompt: str, row: Mapping[str, object]) -> set[int]:
        """The labels that a row asks for; empty if it asks for none of the model's."""
        own = row.get("label")
        if isinstance(own, int):
            return {own} if own in self.model.config.id2label else set()
        if own is not None:
            return self.labels.get(_plain(own), set())
        named = self._names.findall(_plain(prompt))
        return self.labels[max(named, key=len)] if named else set()


def _plain(text: object) -> str:
    return " ".join(str(text).replace("_", " ").casefold().split())


class AestheticPredictor(VisionModel):
    """How much people like an image, about 1 to 10 with LAION's own head; higher is better.

    The folder holds a CLIP vision model with its image processor, and the head as `HEAD`, which reads CLIP's embedding.
    The head is one linear layer or, as in the published predictor, several without activations between them: the
    two-dimensional tensors of the file in the order of the numbers in their names, each with the bias of its name if
    there is one.
    Source: LAION's "improved aesthetic predictor" (Schuhmann 2022).

    Raises:
        UserError: a file is missing, or the head does not fit.
    """

    def __init__(self, path: str, *, device: str = "cpu") -> None:
        if missing := [name for name in NEEDED if not (Path(path) / name).is_file()]:
            raise UserError(
                f"aesthetic:{path} lacks {', '.join(missing)}: copy openai/clip-vit-large-patch14 from the hub into "
                "the folder, and the weights sac+logos+ava1-l14-linearMSE.pth of "
                f"github.com/christophschuhmann/improved-aesthetic-predictor, saved with safetensors as {HEAD}"
            )
        super().__init__("CLIPVisionModelWithProjection", path, device=device)
        self.layers = _layers(Path(path) / HEAD, self.model.config.projection_dim, device)

    def __call__(self, images: Images, prompts: Sequence[str], metadata: object) -> list[float | None]:
        scores: list[float | None] = []
        for output in self.outputs(images):
            score = normalize(output.image_embeds.float(), dim=1)
            for weight, bias in self.layers:
                score = linear(score, weight, bias)
            scores += score[:, 0].tolist()
        return scores


def _layers(path: Path, size: int, device: str) -> list[tuple[Tensor, Tensor | None]]:
    """(weight, bias or None) of each linear layer, from embeddings of `size` numbers to one score."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path, device=device).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    layers: list[tuple[Tensor, Tensor | None]] = []
    names = (name for name, tensor in tensors.items() if tensor.dim() == 2)
    for name in sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]):
        weight, bias = tensors[name], tensors.get(name.removesuffix("weight") + "bias")
        if weight.shape[1] != size or (bias is not None and bias.shape != weight.shape[:1]):
            raise UserError(f"{path}: {name} has the shape {list(weight.shape)}, and must take {size} numbers")
        layers.append((weight, bias))
        size = weight.shape[0]
    if not layers or size != 1:
        raise UserError(f"{path} gives {size} numbers for an image where an aesthetic head gives one")
    return layers
